"""What is carried from concept to concept, on disk and safe against a crash.

    <sequence>/manifest.json                the tasks by key, each with its parent; written last
    <sequence>/tasks/01-fox-3fa2.../        lora.safetensors, embeddings/, methods.safetensors, log.json, images/
    <sequence>/partial/<key>.safetensors    the state of a training that was interrupted

A task's key is a digest of all that it was made from, its parent's key included. So an unchanged task is found again
instead of trained again, and a changed one becomes a branch beside the old one.

The images are for evaluation and for the eye; no training reads those of an earlier task.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from .denoiser import TokenVectors
from .errors import ContinualLoraError
from .files import sync_folder, write_images, write_json, write_tensors
from .images import decode

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
METHODS_STEM = "methods"


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


def digest(value: Any) -> str:  # noqa: ANN401
    """The sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ConceptSequence:
    """A line of tasks in a sequence's folder, ending at `head`.

    Attributes:
        root: the folder.
        base: fingerprint of the base model that all of its tasks were trained on.
        head: key of the newest task of this line; "" when nothing was taught yet.
    """

    root: Path
    base: str
    head: str = ""

    @staticmethod
    def create(root: Path, base: str) -> "ConceptSequence":
        """An empty line in a new or an existing sequence of the same base.

        Raises:
            ContinualLoraError: the folder holds a sequence of another base.
        """
        sequence = ConceptSequence(root, base)
        if (root / MANIFEST).exists():
            sequence.check_base(base)
        return sequence

    @staticmethod
    def open(root: Path, head: str = "") -> "ConceptSequence":
        """Open a sequence on disk, at a task's key or (by default) at the newest task.

        Raises:
            ContinualLoraError: no sequence there, one of a newer format, or no such task.
        """
        manifest = _read_manifest(root)
        chosen = head or manifest["head"]
        if chosen not in manifest["tasks"]:
            raise ContinualLoraError(
                f'"{root.name}" should hold a task `{chosen}`.',
                f"It holds {', '.join(manifest['tasks']) or 'none'}.",
                "Choose one of its tasks.",
            )
        return ConceptSequence(root, manifest["base"], chosen)

    def check_base(self, base: str) -> None:
        """Raise a three-fact error if the sequence was trained on another base than `base`."""
        trained_on = _read_manifest(self.root)["base"] if (self.root / MANIFEST).exists() else self.base
        if trained_on != base:
            raise ContinualLoraError(
                f'"{self.root.name}" should be used with the base model it was trained on (`{trained_on[:12]}`).',
                f"This model is another one (`{base[:12]}`).",
                "Load the model that the sequence was trained on, or start a new sequence under another name.",
            )

    @property
    def tasks(self) -> list[TaskRecord]:
        """The tasks of this line, first to last."""
        stored = _read_manifest(self.root)["tasks"] if self.head else {}
        line: list[TaskRecord] = []
        key = self.head
        while key:
            line.append(TaskRecord(**stored[key]))
            key = line[-1].parent
        return line[::-1]

    def up_to(self, num_tasks: int) -> "ConceptSequence":
        """The same line, cut after its first `num_tasks` tasks.

        Raises:
            ContinualLoraError: it has fewer.
        """
        tasks = self.tasks
        if not 0 <= num_tasks <= len(tasks):
            raise ContinualLoraError(
                f'The number of tasks should lie between 0 and {len(tasks)}, what "{self.root.name}" has.',
                f"It is {num_tasks}.",
                "Set it to a value in this range.",
            )
        return replace(self, head=tasks[num_tasks - 1].key if num_tasks else "")

    def folder(self, task: TaskRecord) -> Path:
        """Where a task's files are."""
        return self.root / "tasks" / task.folder

    def adapter_files(self, task: TaskRecord) -> dict[str, dict[str, Tensor]]:
        """What a task's adapter wrote, by the stem of the file: all in its folder but what the methods carry."""
        files = sorted(self.folder(task).glob("*.safetensors"))
        return {path.stem: load_file(path) for path in files if path.stem != METHODS_STEM}

    def lora(self, task: TaskRecord) -> dict[str, Tensor]:
        """What ComfyUI's LoraLoader puts on the model after a task; empty where only tokens were taught."""
        path = self.folder(task) / "lora.safetensors"
        return load_file(path) if path.exists() else {}

    def tokens(self) -> dict[str, TokenVectors]:
        """Every learned token of this line, by name."""
        return {
            task.token: {
                k: v[0] for k, v in load_file(self.folder(task) / "embeddings" / f"{task.token}.safetensors").items()
            }
            for task in self.tasks
        }

    def method_state(self) -> dict[str, Tensor]:
        """What the methods carry from the newest task."""
        path = self.folder(self.tasks[-1]) / f"{METHODS_STEM}.safetensors"
        return load_file(path) if path.exists() else {}

    def log(self, task: TaskRecord) -> dict[str, list[float]]:
        """Loss and penalty of every training step of a task."""
        loaded: dict[str, list[float]] = json.loads((self.folder(task) / "log.json").read_text(encoding="utf-8"))
        return loaded

    def images(self, task: TaskRecord) -> Tensor:
        """The concept's images as they were trained on, without augmentation, [N, 3, R, R] in 0..1.

        Raises:
            ContinualLoraError: the task was taught before images were kept.
        """
        files = sorted((self.folder(task) / "images").glob("*.png"))
        if not files:
            raise ContinualLoraError(
                f'Task {task.index} of "{self.root.name}" should hold the images of {task.concept}, to compare with.',
                f"`{self.folder(task)}` has no folder `images`: an older version taught it.",
                "Put the images, as PNGs of the size it was trained at, into that folder, or teach the sequence again.",
            )
        return torch.stack([decode(file)[:3] for file in files])

    def partial_path(self, key: str) -> Path:
        """Where the state of an interrupted training of the task `key` is kept."""
        return self.root / "partial" / f"{key}.safetensors"

    def find(self, key: str) -> "ConceptSequence | None":
        """The line that ends at the task `key`, if that task is complete."""
        known = (self.root / MANIFEST).exists() and key in _read_manifest(self.root)["tasks"]
        return replace(self, head=key) if known else None

    def commit(
        self,
        task: TaskRecord,
        tensors: Mapping[str, Mapping[str, Tensor]],
        metadata: dict[str, str],
        log: Any,  # noqa: ANN401
        images: Tensor,
    ) -> "ConceptSequence":
        """Add a task: its folder first, the manifest last. Nothing of what was there changes.

        Args:
            task: its record; `parent` is this line's head.
            tensors: file stem -> tensors.
            metadata: of the LoRA file.
            log: JSON, what the training reported.
            images: of the concept, [N, 3, R, R] in 0..1.

        Returns:
            The line that ends at the task.
        """
        folder, fresh = self.folder(task), self.folder(task).with_name(task.folder + ".new")
        for leftover in (folder, fresh):  # of a crash before the manifest knew the task
            if leftover.exists():
                shutil.rmtree(leftover)
        for stem, content in tensors.items():
            if content:
                write_tensors(fresh / f"{stem}.safetensors", content, metadata if stem == "lora" else None)
        write_json(fresh / "log.json", log)
        write_images(fresh / "images", images)
        fresh.rename(folder)
        sync_folder(folder.parent)
        exists = (self.root / MANIFEST).exists()
        empty: dict[str, Any] = {"format_version": FORMAT_VERSION, "tasks": {}}
        manifest = _read_manifest(self.root) if exists else empty
        manifest |= {"base": self.base, "head": task.key}
        manifest["tasks"][task.key] = asdict(task)
        write_json(self.root / MANIFEST, manifest)
        self.partial_path(task.key).unlink(missing_ok=True)
        return replace(self, head=task.key)


def lines_on_disk(root: Path) -> list[ConceptSequence]:
    """Every line of a sequence's folder, one for each task that no other goes on from; the newest head first."""
    manifest = _read_manifest(root)
    parents = {task["parent"] for task in manifest["tasks"].values()}
    leaves = [key for key in manifest["tasks"] if key not in parents]
    leaves.sort(key=lambda key: key != manifest["head"])
    return [ConceptSequence(root, manifest["base"], key) for key in leaves]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if not path.exists():
        raise ContinualLoraError(
            f"`{root}` should be the folder of a concept sequence.", f"It holds no {MANIFEST}.", "Choose another one."
        )
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if manifest["format_version"] > FORMAT_VERSION:
        raise ContinualLoraError(
            f'"{root.name}" should have format {FORMAT_VERSION} or older.',
            f"It has format {manifest['format_version']}.",
            "Update Continual LoRA to open it.",
        )
    return manifest
