"""A sequence from its folder to its report: what it draws after every task, and what it still knows."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from ..denoiser import Denoiser
from ..disk.sequence import ConceptSequence
from ..errors import ContinualLoraError
from ..metrics.features import FeatureEncoder
from ..settings import TrainSettings
from ..training.memory import is_out_of_memory
from ..work import ALONE, Work
from .dc_accuracy import dc_accuracy
from .fisher_spectrum import Spectrum, fisher_spectrum, restored_task
from .pictures import Artist, Progress, all_cells, draw_missing
from .scores import Scores, measure


@dataclass(frozen=True)
class Evaluation:
    """All that was found out about a sequence.

    Attributes:
        line: the sequence.
        artist: who drew it.
        scores: from the images.
        accuracies: of the diffusion classifier, (i, j) -> 0..1, concept j after task i; empty if not asked for.
        spectra: objective -> layer -> spectrum of the newest task's Fisher; empty if not asked for, or if the
            word vector is all that was trained.
    """

    line: ConceptSequence
    artist: Artist
    scores: Scores
    accuracies: dict[tuple[int, int], float]
    spectra: dict[str, dict[str, Spectrum]]


def check_can_be_evaluated(line: ConceptSequence) -> None:
    """Everything that can be wrong with the sequence, before the first image is drawn.

    Raises:
        ContinualLoraError: nothing was taught, or the real images of a task are missing.
    """
    if not line.head:
        raise ContinualLoraError(
            f'"{line.root.name}" should hold at least one concept.', "It holds none.", "Teach one first."
        )
    for task in line.tasks:
        line.images(task)


def evaluate(
    line: ConceptSequence,
    artist: Artist,
    encoder: FeatureEncoder,
    open_base: Callable[[], Denoiser],
    dc_trials: int,
    spectrum_draws: int,
    on_progress: Progress = lambda phase, done, total: None,
    work: Work = ALONE,
) -> Evaluation:
    """Draw what is missing, then measure; `on_progress` may raise to stop, what was drawn stays.

    Args:
        line: at least one task, with its images; checked before anything is drawn.
        artist: draws.
        encoder: turns images into features.
        open_base: a fresh view of the base, for the diffusion classifier and the Fisher.
        dc_trials: (time, noise) draws for each image; 0 leaves the accuracies out.
        spectrum_draws: samples of the Fisher; 0 leaves the spectra out.
        on_progress: told (phase, done, total).
        work: who does it; only the first gets the spectra.
    """
    check_can_be_evaluated(line)
    tasks = line.tasks
    cells = all_cells(len(tasks))
    draw_missing(line, artist, cells, on_progress, work)
    scores = measure(line, artist, cells, encoder)
    accuracies = {}
    if dc_trials:
        accuracies = dc_accuracy(lambda: work.shared(open_base()), line, range(len(tasks)), dc_trials, on_progress)
    spectra = _newest_spectra(open_base, line, spectrum_draws, on_progress) if spectrum_draws and work.first else {}
    return Evaluation(line, artist, scores, accuracies, spectra)


def _newest_spectra(
    open_base: Callable[[], Denoiser], line: ConceptSequence, draws: int, on_progress: Progress
) -> dict[str, dict[str, Spectrum]]:
    """Of the newest task; where the device has no room for gradients none, with a warning: the rest is measured."""
    # How the task was trained does not matter here, only how its Fisher is drawn.
    known = {"num_prompts", "temperature", "batch_size"}
    settings = TrainSettings(**{name: value for name, value in line.tasks[-1].settings.items() if name in known})

    def on_draws(done: int) -> None:
        on_progress("spectrum", done, 2 * draws)

    try:
        return fisher_spectrum(restored_task(open_base(), line, settings.batch_size), settings, draws, on_draws)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    warnings.warn(
        "The report has no spectrum of the Fisher: the device ran out of memory. Set spectrum_draws to 0 to do without "
        "it, or close what else uses the device.",
        stacklevel=2,
    )
    return {}
