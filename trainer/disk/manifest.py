"""The manifest of a sequence: what it says of each task, and whether that can be true."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..concept import check_token
from ..errors import ContinualLoraError
from .names import check_file_name, is_text, shown

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
COPY = "manifest.copy.json"


@dataclass(frozen=True)
class TaskRecord:
    """One taught concept, as the manifest holds it.

    Attributes:
        key: digest of all that the task was made from.
        parent: key of the task before it; "" for the first.
        folder: name of its folder below `tasks`.
        index: its turn, 1 for the first.
        concept: the concept's name.
        token: its token, without brackets.
        class_noun: what it is one of.
        prompt: what it was trained under, `<token>` in it.
        recipe: how the earlier ones were held.
        settings: every setting by name.
        image_digests: of the images, masks and captions.
        values: final figures, such as the loss and the Fisher's temperature.
        files: sha256 of what is read again, by name below its folder; empty where an older version taught it.
    """

    key: str
    parent: str
    folder: str
    index: int
    concept: str
    token: str
    class_noun: str
    prompt: str
    recipe: str
    settings: dict[str, Any]
    image_digests: list[str]
    values: dict[str, float]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Of its LoRA."""
        return int(self.settings["rank"])

    @property
    def adapter(self) -> str:
        """The setting of this name; LoRA before there was a choice."""
        return str(self.settings.get("adapter", "lora"))

    @property
    def alpha(self) -> float:
        """Of its LoRA, with the setting's 0 read as the rank."""
        return float(self.settings["alpha"] or self.rank)


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a sequence's folder, checked: its tasks can be told to `record`, and every line has an end.

    Keys that this version does not know stay as they are: adding one does not change the format's version.

    Raises:
        ContinualLoraError: there is none, it is of a newer format, or it is damaged.
    """
    path = root / MANIFEST
    if not path.exists():
        raise ContinualLoraError(
            f"`{root}` should be the folder of a concept sequence.", f"It holds no {MANIFEST}.", "Choose another one."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"It cannot be read: {error}.") from error
    if not isinstance(manifest, dict):
        raise _damaged(path, "It holds something else.")
    version = manifest.get("format_version")
    if type(version) is not int or version < 1:
        raise _damaged(path, f"Its `format_version` is {shown(str(version))}.")
    if version > FORMAT_VERSION:
        raise ContinualLoraError(
            f'"{root.name}" should have format {FORMAT_VERSION} or older.',
            f"It has format {version}.",
            "Update Continual LoRA to open it.",
        )
    if wrong := _wrong_with(manifest):
        raise _damaged(path, wrong)
    return manifest


def record(stored: Mapping[str, Any]) -> TaskRecord:
    """A task of a checked manifest."""
    return TaskRecord(**{item.name: stored[item.name] for item in fields(TaskRecord) if item.name in stored})


def _damaged(path: Path, came: str) -> ContinualLoraError:
    copy = path.with_name(COPY)
    do = f"Undo what was changed in it, or put the copy `{copy}` in its place." if copy.exists() else "Undo the change."
    return ContinualLoraError(f"`{path}` should be the list of the sequence's tasks as it was written.", came, do)


def _wrong_with(manifest: dict[str, Any]) -> str:
    """What is impossible about a manifest, in a sentence; "" if nothing."""
    base, head, tasks = (manifest.get(name) for name in ("base", "head", "tasks"))
    if not (isinstance(base, str) and isinstance(head, str) and isinstance(tasks, dict)):
        return "It should hold the texts `base` and `head` and the table `tasks`."
    if head not in tasks:
        return f"Its `head` is {shown(head)}, which is none of its tasks."
    folders = set()
    for key, task in tasks.items():
        if wrong := _wrong_with_task(key, task):
            return f"Of the task {shown(key)}, {wrong}."
        parent = task["parent"]
        before = tasks.get(parent, {}) if parent else {"index": 0}
        # An index that grows by one along a line leaves no room for a circle.
        if not isinstance(before, dict) or before.get("index") != task["index"] - 1:
            return f"The task {shown(key)} should come right after its `parent`, {shown(parent)}, but that is no task."
        folders.add(task["folder"].casefold())
    return "" if len(folders) == len(tasks) else "Two of its tasks have one `folder`."


def _wrong_with_task(key: str, task: Any) -> str:  # noqa: ANN401
    if not isinstance(task, dict):
        return "there is no table"
    for item in fields(TaskRecord):
        optional = item.default_factory is not MISSING
        if not (_CHECKS[item.name](task[item.name]) if item.name in task else optional):
            return f"`{item.name}` is {shown(str(task[item.name])) if item.name in task else 'missing'}"
    return "" if task["key"] == key else f"`key` is {shown(task['key'])}"


def _is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and is_text(value)


def _is_number(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, most: int = 1 << 31) -> bool:  # noqa: ANN401
    return type(value) is int and 0 < value <= most


def _passes(check: Callable[..., Any], *arguments: Any) -> bool:  # noqa: ANN401
    try:
        check(*arguments)
    except ContinualLoraError:
        return False
    return True


def _is_folder(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and _passes(check_file_name, value, "folder")


def _are_settings(value: Any) -> bool:  # noqa: ANN401
    """What is read of an old task's settings; the others are for the eye."""
    if not isinstance(value, dict):
        return False
    alpha, texts = value.get("alpha"), (value.get("base_concept"), value.get("adapter", "lora"))
    numbers = _is_count(value.get("rank"), 4096) and isinstance(alpha, int | float) and 0 <= alpha < 1e9
    return numbers and type(value.get("seed")) is int and all(map(_is_text, texts))


def _are_files(value: Any) -> bool:  # noqa: ANN401
    """Names below the task's folder, `embeddings/fox.safetensors` or `lora.safetensors`, each with its sha256."""
    return isinstance(value, dict) and all(
        _is_text(digest) and all(_is_folder(part) for part in name.split("/")) for name, digest in value.items()
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "key": _is_folder,
    "parent": _is_text,
    "folder": _is_folder,
    "index": _is_count,
    "concept": _is_text,
    "token": lambda value: isinstance(value, str) and _passes(check_token, value),
    "class_noun": _is_text,
    "prompt": _is_text,
    "recipe": _is_text,
    "settings": _are_settings,
    "image_digests": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "values": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "files": _are_files,
}
