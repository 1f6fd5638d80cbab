"""What is carried from concept to concept, on disk and safe against a crash.

    <sequence>/manifest.json                the tasks by key, each with its parent; written last, after its copy
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
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..denoiser import TokenVectors
from ..errors import ContinualLoraError
from ..images import decode_all
from .files import (
    read_tensors,
    rename,
    set_aside,
    sha256_of,
    storing,
    sync_folder,
    write_images,
    write_json,
    write_tensors,
)
from .manifest import COPY, FORMAT_VERSION, MANIFEST, TaskRecord, read_manifest, record

METHODS_STEM = "methods"
LOG = "log.json"
CONSOLIDATION = "consolidation"  # a phase after the training that keeps its state


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
        manifest = read_manifest(root)
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
        trained_on = read_manifest(self.root)["base"] if (self.root / MANIFEST).exists() else self.base
        if trained_on != base:
            raise ContinualLoraError(
                f'"{self.root.name}" should be used with the base model it was trained on (`{trained_on[:12]}`).',
                f"This model is another one (`{base[:12]}`).",
                "Load the model that the sequence was trained on, or start a new sequence under another name.",
            )

    @property
    def tasks(self) -> list[TaskRecord]:
        """The tasks of this line, first to last."""
        stored = read_manifest(self.root)["tasks"] if self.head else {}
        line: list[TaskRecord] = []
        key = self.head
        while key:
            if key not in stored:
                raise ContinualLoraError(
                    f'"{self.root.name}" should still hold the task `{key[:12]}`.',
                    f"Its {MANIFEST} was changed since the sequence was opened.",
                    "Open the sequence again, with Load Concept Sequence or by training again.",
                )
            line.append(record(stored[key]))
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
        names = task.files or [path.name for path in self.folder(task).glob("*.safetensors")]
        stems = sorted(name.removesuffix(".safetensors") for name in names if name != LOG and "/" not in name)
        return {stem: self._tensors(task, stem) for stem in stems if stem != METHODS_STEM}

    def lora(self, task: TaskRecord) -> dict[str, Tensor]:
        """What ComfyUI's LoraLoader puts on the model after a task; empty where only tokens were taught."""
        return self._tensors(task, "lora", optional=True)

    def lora_metadata(self, task: TaskRecord) -> dict[str, str]:
        """What the LoRA file of a task says of itself."""
        return read_tensors(self._checked(task, "lora.safetensors"))[1]

    def tokens(self) -> dict[str, TokenVectors]:
        """Every learned token of this line, by name."""
        return {task.token: self._token(task) for task in self.tasks}

    def method_state(self) -> dict[str, Tensor]:
        """What the methods carry from the newest task."""
        return self._tensors(self.tasks[-1], METHODS_STEM, optional=True)

    def log(self, task: TaskRecord) -> dict[str, list[float]]:
        """Loss and penalty of every training step of a task."""
        path = self._checked(task, LOG)
        try:
            loaded: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(task, LOG, f"It cannot be read: {error}.") from error
        if not isinstance(loaded, dict) or not isinstance(loaded.get("loss"), list):
            raise self._damaged(task, LOG, "It holds no list of losses.")
        return loaded

    def _token(self, task: TaskRecord) -> TokenVectors:
        stored = self._tensors(task, f"embeddings/{task.token}")
        if not stored or any(vector.dim() != 2 or len(vector) != 1 for vector in stored.values()):
            shapes = ", ".join(str(list(vector.shape)) for vector in stored.values()) or "nothing"
            name = f"embeddings/{task.token}.safetensors"
            raise self._damaged(task, name, f"A word is [1, D] for each text encoder; it holds {shapes}.")
        return {encoder: vector[0] for encoder, vector in stored.items()}

    def _tensors(self, task: TaskRecord, stem: str, optional: bool = False) -> dict[str, Tensor]:
        """A file of a task, checked; where it is optional and was never written, nothing."""
        name = f"{stem}.safetensors"
        if optional and name not in task.files and not (self.folder(task) / name).exists():
            return {}
        return read_tensors(self._checked(task, name), self._what_to_do(task))[0]

    def _checked(self, task: TaskRecord, name: str) -> Path:
        """A file of a task, its bytes those that were written as far as the manifest knows them."""
        path, written = self.folder(task) / name, task.files.get(name, "")
        if not path.is_file():
            raise self._damaged(task, name, "It is missing.")
        try:
            changed = written and sha256_of(path) != written
        except OSError as error:
            raise self._damaged(task, name, f"It cannot be read: {error.strerror}.") from error
        if changed:
            raise self._damaged(task, name, "Its bytes are others: the disk damaged it, or something wrote to it.")
        return path

    def _damaged(self, task: TaskRecord, name: str, came: str) -> ContinualLoraError:
        expected = f'Concept {task.index} of "{self.root.name}" should hold `{name}` as its training wrote it.'
        return ContinualLoraError(expected, came, self._what_to_do(task))

    def _what_to_do(self, task: TaskRecord) -> str:
        return (
            f"Put the file back from a copy. If there is none, move the folder `{self.folder(task)}` away and run the "
            "same training again: that makes this concept again and leaves the others alone."
        )

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
        return decode_all(files)

    def partial_path(self, key: str, phase: str = "") -> Path:
        """Where the state of an interrupted training of the task `key` is kept, or of a phase after it."""
        return self.root / "partial" / f"{key}{phase and '.'}{phase}.safetensors"

    def find(self, key: str) -> "ConceptSequence | None":
        """The line that ends at the task `key`, if that task is complete: in the manifest, and no file is missing."""
        stored = read_manifest(self.root)["tasks"] if (self.root / MANIFEST).exists() else {}
        if key not in stored:
            return None
        task = record(stored[key])
        complete = all((self.folder(task) / name).is_file() for name in task.files or (LOG,))
        return replace(self, head=key) if complete else None

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
        manifest: dict[str, Any] = {"format_version": FORMAT_VERSION, "tasks": {}}
        if (self.root / MANIFEST).exists():
            manifest = read_manifest(self.root)
        folder, fresh = self.folder(task), self.folder(task).with_name(task.folder + ".new")
        if task.key in manifest["tasks"] and folder.exists():  # something is missing in it, or it would have been found
            set_aside(folder)
        for leftover in (folder, fresh):  # of a crash before the manifest knew the task
            if leftover.exists():
                with storing(leftover):
                    shutil.rmtree(leftover)
        written = {stem: content for stem, content in tensors.items() if content}
        for stem, content in written.items():
            write_tensors(fresh / f"{stem}.safetensors", content, metadata if stem == "lora" else None)
        write_json(fresh / LOG, log)
        write_images(fresh / "images", images)
        names = sorted([*(f"{stem}.safetensors" for stem in written), LOG])
        task = replace(task, files={name: sha256_of(fresh / name) for name in names})
        with storing(folder):
            rename(fresh, folder)
            sync_folder(folder.parent)
        manifest |= {"base": self.base, "head": task.key}
        manifest["tasks"][task.key] = asdict(task)
        write_json(self.root / COPY, manifest)  # for the day on which the disk damages the other one
        write_json(self.root / MANIFEST, manifest)
        for phase in ("", CONSOLIDATION):
            if (path := self.partial_path(task.key, phase)).exists():
                with suppress(OSError):  # the task is found before its state is looked for
                    path.unlink()
        return replace(self, head=task.key)


def lines_on_disk(root: Path) -> dict[str, ConceptSequence]:
    """The newest line of a sequence, and one to each of its other tasks in the order of training, by its folder."""
    manifest = read_manifest(root)
    heads = sorted(manifest["tasks"], key=lambda key: key != manifest["head"])
    return {manifest["tasks"][key]["folder"]: ConceptSequence(root, manifest["base"], key) for key in heads}
