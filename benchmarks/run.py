"""One sequence from its first concept to its row in the table, in a process of its own."""

import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.concepts import concepts_of
from benchmarks.joint import NAME as JOINT
from benchmarks.joint import drawn_jointly, train_jointly
from benchmarks.text_alignment import AlignedText
from trainer.bases.tiny.base import TinyBase
from trainer.bases.tiny.weights import fingerprint, weights_folder
from trainer.concept import Concept, prepare
from trainer.disk.sequence import ConceptSequence
from trainer.evaluation.dc_accuracy import dc_accuracy
from trainer.evaluation.pictures import draw_missing, first_and_last_cells, own_artist, read_cell
from trainer.evaluation.scores import measure, measure_cell, prompt_without_token
from trainer.images import mosaic
from trainer.metrics import text_similarity
from trainer.metrics.features.efficientnet import EfficientNetLite0
from trainer.plots import image_grid
from trainer.recipes import adapter_name
from trainer.settings import TrainSettings
from trainer.teach import teach

IMAGES, SAMPLING_STEPS, IMAGE_SEED, TRIALS, THUMBNAIL = 16, 20, 1000, 8, 192
Row = dict[str, object]


@dataclass(frozen=True)
class Job:
    """A run that the table lacks.

    Attributes:
        recipe: of the settings, or "joint".
        settings: of every task.
        concepts: name of the set.
        work: where the sequence lies while it is made; a run that was killed goes on from what is there.
        guidance: classifier-free guidance of the images.
    """

    recipe: str
    settings: TrainSettings
    concepts: str
    work: Path
    guidance: float


def adapter_of(job: Job) -> str:
    """What the run trains."""
    return "lora" if job.recipe == JOINT else adapter_name(job.recipe, job.settings.adapter)


def norms_path(job: Job) -> Path:
    """Where a run leaves the norm of its adapter at every step, a line for each task."""
    return job.work.with_suffix(".norms.csv")


def costs_path(job: Job) -> Path:
    """Where a run leaves what every task cost: seconds, bytes for the next task, bytes of the whole sequence."""
    return job.work.with_suffix(".costs.csv")


def peak_mb() -> float:
    """Most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(job: Job) -> Row:
    """Teach, draw, measure; leaves a sheet of pictures and the last task's log beside the work folder."""
    torch.set_num_threads(1)
    concepts = concepts_of(job.concepts)
    measured = _joint(job, concepts) if job.recipe == JOINT else _in_sequence(job, concepts)
    shutil.rmtree(job.work, ignore_errors=True)
    return {
        "recipe": job.recipe,
        "adapter": adapter_of(job),
        "seed": job.settings.seed,
        "encoder": EfficientNetLite0.name,
        **measured,
    }


def run_job(job: Job) -> tuple[Job, Row]:
    """The run with its job, for a pool; one process each, so that the peak memory is its own."""
    return job, run(job)


def _taught(job: Job, concepts: list[Concept]) -> tuple[ConceptSequence, list[tuple[float, int, int]]]:
    """Teach all; what each task cost, see `costs_path`."""
    line, costs, all_bytes = ConceptSequence.create(job.work, TinyBase().fingerprint), [], 0
    for concept in concepts:
        start = time.process_time()
        line = teach(TinyBase(), concept, job.settings, line)
        seconds = time.process_time() - start
        files = [path for path in line.folder(line.tasks[-1]).iterdir() if path.suffix == ".safetensors"]
        state = sum(path.stat().st_size for path in files)
        all_bytes += state
        costs.append((seconds, state, all_bytes))
    return line, costs


def _in_sequence(job: Job, concepts: list[Concept]) -> Row:
    resumed = job.work.exists()
    line, costs = _taught(job, concepts)
    peak = peak_mb()
    artist = own_artist(TinyBase, IMAGES, IMAGE_SEED, SAMPLING_STEPS, job.guidance)
    last, cells = len(concepts) - 1, first_and_last_cells(len(concepts))
    draw_missing(line, artist, cells)
    encoder = EfficientNetLite0()
    scores = measure(line, artist, cells, encoder)
    own_turn = [read_cell(line, artist, j, j) for j in range(last + 1)]
    at_the_end = [read_cell(line, artist, last, j) for j in range(last + 1)]
    _sheet(job, concepts, {"right after its task": own_turn, "after the last task": at_the_end})
    accuracies = dc_accuracy(TinyBase, line, [last], TRIALS).values()
    if not resumed:
        costs_path(job).write_text("\n".join(",".join(map(str, cost)) for cost in costs))
    norms_path(job).write_text("\n".join(",".join(map(str, line.log(task)["adapter_norm"])) for task in line.tasks))
    return {
        **scores.values,
        "t2i": _t2i(concepts, [encoder(images) for images in at_the_end]),
        "dc_accuracy": sum(accuracies) / len(accuracies),
        # What a killed run had done is not trained again, and is not known to the second.
        "seconds_per_task": "" if resumed else sum(seconds for seconds, _, _ in costs) / len(costs),
        "peak_mb": peak,
        "state_bytes": costs[-1][1],
    }


def _joint(job: Job, concepts: list[Concept]) -> Row:
    start = time.process_time()
    base, tokens = train_jointly(concepts, job.settings)
    seconds, peak = time.process_time() - start, peak_mb()
    drawn = [
        drawn_jointly(base, tokens, concept.prompt, IMAGES, IMAGE_SEED, SAMPLING_STEPS, job.guidance)
        for concept in concepts
    ]
    job.work.parent.mkdir(parents=True, exist_ok=True)
    _sheet(job, concepts, {"all at once": drawn})
    encoder = EfficientNetLite0()
    real = [encoder(prepare(concept, base.resolution)[0]) for concept in concepts]
    features = [encoder(images) for images in drawn]
    cells = [measure_cell(r, x, None) for r, x in zip(real, features, strict=True)]
    mean = {name: sum(cell[name] for cell in cells) / len(cells) for name in cells[0]}
    # One model, one turn: nothing comes after.
    return {
        "a_mmd": mean["mmd"],
        "new_mmd": mean["mmd"],
        "f_mmd": 0.0,
        "bwt_mmd": 0.0,
        "i2i": mean["i2i"],
        "kid": mean["kid"],
        "t2i": _t2i(concepts, features),
        "seconds_per_task": seconds / len(concepts),
        "peak_mb": peak,
    }


def _t2i(concepts: list[Concept], features: list[Tensor]) -> float:
    """Mean over the concepts, by the encoder that reads."""
    aligned = AlignedText()
    prompts = [aligned.encode_text(prompt_without_token(each.prompt, each.token)) for each in concepts]
    values = [float(text_similarity(p, aligned.carry(x))) for p, x in zip(prompts, features, strict=True)]
    return sum(values) / len(values)


def _sheet(job: Job, concepts: list[Concept], rows: dict[str, list[Tensor]]) -> None:
    rows = {"real": [prepare(concept, TinyBase.resolution)[0] for concept in concepts], **rows}
    grid = [[mosaic(images, THUMBNAIL) for images in row] for row in rows.values()]
    image_grid(grid, list(rows), [concept.name for concept in concepts]).save(job.work.with_suffix(".png"))


def base_name() -> str:
    """Which weights of the embedded base a row was made with."""
    return fingerprint(weights_folder())[:12]
