"""What a page shows of a sequence: facts about its tasks and their pictures, without reading a single tensor.

Names come from outside here. Each part of one is held to what a file name may be, and a path that leads out of the
folder by a link is refused.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .disk.files import inside
from .disk.manifest import MANIFEST, TaskRecord, read_manifest
from .disk.names import check_file_name, shown
from .disk.sequence import LOG, ConceptSequence
from .errors import ContinualLoraError
from .images import thumbnail as small_picture
from .recipes import RECIPES, build_methods
from .settings import TrainSettings

SEPARATOR = " / "
# Of the pictures of a task or a cell, these are listed; a page shows no more side by side.
MOST_IMAGES = 8


@dataclass(frozen=True)
class TaskFacts:
    """One card of the strip.

    Attributes:
        index: its turn, 1 for the first.
        concept: the concept's name.
        token: its token, without brackets.
        class_noun: what it is one of.
        recipe: how the earlier ones were held.
        penalty_weight: how strongly; None where the recipe has no penalty.
        folder: name of its folder.
        written: when its training ended, in seconds since 1970; None where its log is missing. No date is in the
            manifest, so that the same training gives the same bytes: this is the time of the file.
        num_bytes: of all its files.
        num_images: that it was trained on.
        images: the first of them, paths below the sequence's folder.
        is_branch: whether the newest line of the sequence goes without it.
        is_complete: whether every file that the manifest names is there.
    """

    index: int
    concept: str
    token: str
    class_noun: str
    recipe: str
    penalty_weight: float | None
    folder: str
    written: float | None
    num_bytes: int
    num_images: int
    images: list[str]
    is_branch: bool
    is_complete: bool


def below(folder: Path, *parts: str) -> Path:
    """A path below a folder, links followed.

    Args:
        folder: may itself be a link.
        parts: names, each a plain file name.

    Raises:
        ContinualLoraError: a part is no file name, or a link leads out of the folder.
    """
    return inside(folder.joinpath(*(check_file_name(part, "path") for part in parts)), folder)


def choice_of(line: ConceptSequence) -> str:
    """What `find_line` finds a line by, whatever is taught after it: "name / folder of its newest task"."""
    return f"{line.root.name}{SEPARATOR}{line.tasks[-1].folder}"


def find_root(folder: Path, choice: str) -> Path:
    """The folder of a sequence by the words of Load Concept Sequence, which `find_line` explains.

    Raises:
        ContinualLoraError: there is none, or the words are no file name.
    """
    name = choice.partition(SEPARATOR)[0]
    root = below(folder, check_file_name(name, "sequence_name"))
    if not below(root, MANIFEST).is_file():
        raise ContinualLoraError(
            '"sequence_name" should be a sequence in output/continual_lora.',
            f"There is no {shown(name)}.",
            "Train one with Train Continual LoRA, or press R and choose another.",
        )
    return root


def find_line(folder: Path, choice: str) -> ConceptSequence:
    """A line of a sequence by the words of Load Concept Sequence.

    Args:
        folder: of all sequences.
        choice: "name" for the newest line, "name / task" for the one that ends at this task's folder.

    Raises:
        ContinualLoraError: there is none, it is damaged, or the words are no file names.
    """
    root, task_folder = find_root(folder, choice), choice.partition(SEPARATOR)[2]
    manifest = read_manifest(root)
    heads = {task["folder"]: key for key, task in manifest["tasks"].items()}
    if task_folder and task_folder not in heads:
        raise ContinualLoraError(
            f'"{root.name}" should hold a task {shown(task_folder)}.',
            f"It holds {len(heads)} others.",
            "Press R and choose another.",
        )
    return ConceptSequence(root, manifest["base"], heads.get(task_folder, manifest["head"]))


def task_facts(line: ConceptSequence, tasks: list[TaskRecord]) -> list[TaskFacts]:
    """Facts of some tasks of a line."""
    newest = ConceptSequence.open(line.root)
    kept = {task.key for task in newest.tasks} if newest.head != line.head else {task.key for task in tasks}
    return [_facts(line, task, task.key not in kept) for task in tasks]


def _facts(line: ConceptSequence, task: TaskRecord, is_branch: bool) -> TaskFacts:
    folder, log = line.folder(task), line.folder(task) / LOG
    images = listed_images(line.root, f"tasks/{task.folder}/images")
    return TaskFacts(
        task.index,
        task.concept,
        task.token,
        task.class_noun,
        task.recipe,
        _penalty_weight(task),
        task.folder,
        log.stat().st_mtime if log.is_file() else None,
        _num_bytes(folder),
        len(images),
        images[:MOST_IMAGES],
        is_branch,
        all((folder / name).is_file() for name in task.files or (LOG,)),
    )


def _penalty_weight(task: TaskRecord) -> float | None:
    """The setting, where the recipe makes use of it."""
    weight = task.settings.get("penalty_weight")
    if task.recipe not in RECIPES or not isinstance(weight, int | float):
        return None
    methods = build_methods(TrainSettings(recipe=task.recipe)).values()
    return weight if any("penalty_weight" in method.uses for method in methods) else None


def _num_bytes(folder: Path) -> int:
    found = (Path(where) / name for where, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in found)


def listed_images(root: Path, folder: str) -> list[str]:
    """The pictures of a folder below a sequence's own, as paths for `picture_path`; none where it is not there."""
    try:
        files = below(root, *folder.split("/")).glob("*.png")
    except ContinualLoraError:
        return []
    return [f"{folder}/{file.name}" for file in sorted(files)]


def picture_path(root: Path, name: str) -> Path:
    """A picture of a sequence, kept for a task or drawn for an evaluation.

    Args:
        root: the sequence's folder.
        name: `tasks/<task>/images/<file>.png` or `evaluation/<after task>/<cell>/<file>.png`.

    Raises:
        ContinualLoraError: it is another path, or leads out of the folder, or there is none.
    """
    parts = name.split("/")
    known = len(parts) == 4 and (parts[0] == "evaluation" or (parts[0], parts[2]) == ("tasks", "images"))
    path = below(root, *parts) if known and name.endswith(".png") else None
    if path is None or not path.is_file():
        raise ContinualLoraError(
            f"{shown(name)} should be a picture of `{root.name}`.", "There is none.", "Load the page again."
        )
    return path


def thumbnail(path: Path, side: int) -> bytes:
    """A picture as WebP, made smaller until it fits into `side` x `side` pixels.

    Raises:
        ContinualLoraError: it cannot be decoded.
    """
    stream, picture = io.BytesIO(), small_picture(path, side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    picture.save(stream, "WEBP", quality=90)
    return stream.getvalue()


def whole_number(query: Mapping[str, Any], name: str, default: int, least: int, most: int) -> int:
    """A number of a query.

    Raises:
        ContinualLoraError: it is none, or out of range.
    """
    text = str(query.get(name, default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise ContinualLoraError(
            f'"{name}" should be a whole number from {least} to {most}.', f"It is {shown(text)}.", "Change it."
        )
    return int(text)
