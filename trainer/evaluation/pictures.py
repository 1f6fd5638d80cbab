"""Images of every concept after every task, kept on disk beside the sequence and never drawn twice.

    <sequence>/evaluation/<after this task>/<this concept>-<digest of how>/001.png ...

They are read back from disk even when they were just drawn, so that a number does not depend on who drew them when.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..apply import apply_sequence
from ..denoiser import Denoiser
from ..disk.files import rename, set_aside, storing, sync_folder, write_images
from ..disk.lock import writing
from ..disk.manifest import TaskRecord
from ..disk.sequence import ConceptSequence, digest
from ..images import decode_all
from ..sampling import generate
from ..work import ALONE, Work

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Artist:
    """Something that draws with a model.

    Attributes:
        draw: a line and prompts -> for each prompt its images [M, 3, H, W] in 0..1, always from the same noise.
        how: all that the images depend on besides the line and the prompt; JSON.
    """

    draw: Callable[[ConceptSequence, list[str]], Iterator[Tensor]]
    how: Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """How images are drawn to be measured.

    Attributes:
        count: images of each prompt, 2 or more.
        seed: of the noise.
        steps: of the sampler.
        guidance: of the prompt against the empty one.
        size: side in pixels; 0 is the base's own.
        sampler: of ComfyUI, where a checkpoint draws.
        scheduler: likewise.
    """

    count: int = 8
    seed: int = 0
    steps: int = 20
    guidance: float = 3.0
    size: int = 0
    sampler: str = "ddim"
    scheduler: str = "normal"


def own_artist(
    open_base: Callable[[], Denoiser], count: int, seed: int, steps: int, guidance: float, size: int = 0
) -> Artist:
    """The trainer's own DDIM sampler, for bases without a host.

    Args:
        open_base: a fresh view of the base.
        count: M, images of each prompt.
        seed: of the noise.
        steps: of the sampler.
        guidance: of the prompt against the empty one.
        size: side in pixels; 0 is the base's own.
    """

    def draw(line: ConceptSequence, prompts: list[str]) -> Iterator[Tensor]:
        base = open_base()
        tokens = apply_sequence(base, line)
        with torch.no_grad():
            empty = base.encode_prompt("", tokens)
            for prompt in prompts:
                yield generate(base, base.encode_prompt(prompt, tokens), empty, count, seed, steps, guidance, size)

    how = {"sampler": "ddim", "count": count, "seed": seed, "steps": steps, "guidance": guidance, "size": size}
    return Artist(draw, how)


def all_cells(num_tasks: int) -> list[tuple[int, int]]:
    """Every (i, j) with j <= i, 0-based: concept j after task i."""
    return [(i, j) for i in range(num_tasks) for j in range(i + 1)]


def first_and_last_cells(num_tasks: int) -> list[tuple[int, int]]:
    """Only what the metrics of the whole sequence need: each concept at its own turn, and all after the last task."""
    return [(i, j) for i, j in all_cells(num_tasks) if i in (j, num_tasks - 1)]


def draw_missing(
    line: ConceptSequence,
    artist: Artist,
    cells: Iterable[tuple[int, int]],
    on_progress: Progress = lambda phase, done, total: None,
    work: Work = ALONE,
) -> None:
    """Draw those cells that are not on disk; what is finished stays when `on_progress` raises.

    Args:
        line: at least one task.
        artist: draws.
        cells: (i, j), 0-based: concept j after task i.
        on_progress: told ("draw", done, total) after each cell; may raise to stop.
        work: who draws; each its share of the cells.
    """
    tasks, done = line.tasks, 0
    missing = _missing(line, artist, cells)
    work.agree(f"{missing}")
    if not missing:
        return
    missing = [missing[number] for number in work.share(len(missing))]
    with writing(line.root / "evaluation", "drawing") if work.first else nullcontext():
        missing = _missing(line, artist, missing)  # again: another run may have drawn them since
        for after in sorted({i for i, _ in missing}):
            concepts = [tasks[j] for i, j in missing if i == after]
            drawn = artist.draw(line.up_to(after + 1), [task.prompt for task in concepts])
            for task, images in zip(concepts, drawn, strict=True):
                _keep(cell_folder(line, tasks[after], task, artist), images)
                done += 1
                on_progress("draw", done, len(missing))
    work.agree("drawn")


def read_cell(line: ConceptSequence, artist: Artist, after: int, concept: int) -> Tensor:
    """The images [M, 3, H, W] of a cell that has been drawn."""
    tasks = line.tasks
    files = sorted(cell_folder(line, tasks[after], tasks[concept], artist).glob("*.png"))
    return decode_all(files)


def cell_folder(line: ConceptSequence, after: TaskRecord, concept: TaskRecord, artist: Artist) -> Path:
    """Where the images of a cell are, drawn or not: concept `concept` after task `after`."""
    how = digest({"prompt": concept.prompt, **artist.how})
    return line.root / "evaluation" / after.folder / f"{concept.folder}-{how[:12]}"


def _missing(line: ConceptSequence, artist: Artist, cells: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    tasks = line.tasks
    return [(i, j) for i, j in cells if not any(cell_folder(line, tasks[i], tasks[j], artist).glob("*.png"))]


def _keep(folder: Path, images: Tensor) -> None:
    unfinished = folder.with_name(folder.name + ".new")
    if folder.exists():  # someone took its images away
        set_aside(folder)
    if unfinished.exists():  # of a crash
        with storing(unfinished):
            shutil.rmtree(unfinished)
    write_images(unfinished, images)
    with storing(folder):
        rename(unfinished, folder)
        sync_folder(folder.parent)
