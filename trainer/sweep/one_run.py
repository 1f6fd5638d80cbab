"""One run: concepts taught in sequence, drawn right after their tasks and after the last one, measured."""

import io
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..concept import Concept
from ..denoiser import Denoiser
from ..disk.lock import writing_in_turn
from ..disk.sequence import ConceptSequence
from ..evaluation.dc_accuracy import dc_accuracy
from ..evaluation.pictures import Artist, draw_missing, first_and_last_cells, read_cell
from ..evaluation.scores import measure
from ..images import mosaic
from ..metrics.features import FeatureEncoder
from ..plots import image_grid
from ..settings import TrainSettings
from ..teach import teach

METRICS = ("a_mmd", "f_mmd", "bwt_mmd", "i2i", "new_mmd", "kid", "t2i", "dc_accuracy")
COSTS = ("seconds_per_task", "peak_mb", "state_bytes")
SHEET, NORMS, TASK_COSTS = ".png", ".norms.csv", ".costs.csv"  # endings of the files that a run leaves
THUMBNAIL = 192
PATIENCE = 60.0  # seconds, until a process whose driver or machine was killed has ended too


@contextmanager
def sequence_folder(work: Path, name: str) -> Iterator[Path]:
    """Where a run keeps its sequence until it is finished; one that was killed is found again.

    Args:
        work: of the runs on this machine.
        name: of the run.
    """
    folder = work / name
    with writing_in_turn(folder, "running", PATIENCE):
        yield folder / "sequence"
    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Taught:
    """A sequence and what it cost.

    Attributes:
        line: the sequence.
        costs: for each task seconds of one core, bytes for the next task, bytes of the whole sequence; empty if a part
            was made earlier, which is not known to the second.
        peak_mb: most memory so far, see `peak_mb`.
        state_bytes: for the next task.
    """

    line: ConceptSequence
    costs: list[tuple[float, int, int]]
    peak_mb: float | None
    state_bytes: int


def teach_all(
    folder: Path, concepts: Sequence[Concept], settings: TrainSettings, open_base: Callable[[], Denoiser]
) -> Taught:
    """Teach the concepts in their order; what is in the folder already is found, what was interrupted goes on."""
    resumed = folder.exists()
    line = ConceptSequence.create(folder, open_base().fingerprint)
    costs: list[tuple[float, int, int]] = []
    all_bytes = state = 0
    for concept in concepts:
        start = time.process_time()
        line = teach(open_base(), concept, settings, line)
        seconds = time.process_time() - start
        files = [path for path in line.folder(line.tasks[-1]).iterdir() if path.suffix == ".safetensors"]
        state = sum(path.stat().st_size for path in files)
        all_bytes += state
        costs.append((seconds, state, all_bytes))
    return Taught(line, [] if resumed else costs, peak_mb(), state)


@dataclass(frozen=True)
class Measured:
    """What was found out about a sequence.

    Attributes:
        values: column -> figure.
        files: see `Outcome`.
        drawn: for each concept its images after the last task, [M, 3, H, W] in 0..1.
    """

    values: dict[str, object]
    files: dict[str, bytes]
    drawn: list[Tensor]


def measure_all(
    taught: Taught, artist: Artist, encoder: FeatureEncoder, open_base: Callable[[], Denoiser], dc_trials: int
) -> Measured:
    """Draw, measure, classify.

    Args:
        taught: the sequence.
        artist: draws.
        encoder: turns images into features.
        open_base: a fresh view of the base.
        dc_trials: draws of the diffusion classifier; 0 leaves its accuracy out.
    """
    line, costs = taught.line, taught.costs
    last, cells = len(line.tasks) - 1, first_and_last_cells(len(line.tasks))
    draw_missing(line, artist, cells)
    values: dict[str, object] = dict(measure(line, artist, cells, encoder).values)
    if dc_trials:
        accuracies = dc_accuracy(open_base, line, [last], dc_trials).values()
        values["dc_accuracy"] = sum(accuracies) / len(accuracies)
    own_turn = [read_cell(line, artist, j, j) for j in range(last + 1)]
    at_the_end = [read_cell(line, artist, last, j) for j in range(last + 1)]
    real = [line.images(task) for task in line.tasks]
    rows = {"real": real, "right after its task": own_turn, "after the last task": at_the_end}
    files = {
        SHEET: sheet(rows, [task.concept for task in line.tasks]),
        NORMS: lines_of(line.log(task)["adapter_norm"] for task in line.tasks),
    }
    if costs:
        values["seconds_per_task"] = sum(seconds for seconds, _, _ in costs) / len(costs)
        files[TASK_COSTS] = lines_of(costs)
    values |= {"peak_mb": "" if taught.peak_mb is None else taught.peak_mb, "state_bytes": taught.state_bytes}
    return Measured(values, files, at_the_end)


def peak_mb() -> float | None:
    """Most memory so far, in MiB: of the GPU if there was work on one, else of this process; None on Windows."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def sheet(rows: dict[str, list[Tensor]], names: list[str]) -> bytes:
    """A PNG of image batches, a column for each concept."""
    grid = [[mosaic(images, THUMBNAIL) for images in row] for row in rows.values()]
    content = io.BytesIO()
    image_grid(grid, list(rows), names).save(content, "PNG")
    return content.getvalue()


def lines_of(rows: Iterable[Sequence[float]]) -> bytes:
    """CSV without a heading."""
    return "\n".join(",".join(map(str, row)) for row in rows).encode()
