"""One sequence from its first concept to its row in the table."""

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.job import Job
from benchmarks.joint import NAME as JOINT
from benchmarks.joint import drawn_jointly, train_jointly
from benchmarks.text_alignment import AlignedText
from trainer.bases.tiny.base import TinyBase
from trainer.concept import Concept, prepare
from trainer.concept_set import load_concepts
from trainer.evaluation.pictures import own_artist
from trainer.evaluation.scores import measure_cell, prompt_without_token
from trainer.metrics import text_similarity
from trainer.metrics.features.efficientnet import EfficientNetLite0
from trainer.sweep.engines import Place
from trainer.sweep.one_run import SHEET, measure_all, peak_mb, sequence_folder, sheet, teach_all
from trainer.sweep.sweep import Outcome

IMAGES, SAMPLING_STEPS, IMAGE_SEED, TRIALS = 16, 20, 1000, 8


def run_job(job: Job, place: Place) -> Outcome:
    """Teach, draw, measure."""
    torch.set_num_threads(1)
    concepts = load_concepts(place.inputs[job.concepts].root)
    found = _joint(job, concepts) if job.recipe == JOINT else _in_sequence(job, concepts, place.work)
    return replace(found, row={**found.row, "encoder": EfficientNetLite0.name})


def _in_sequence(job: Job, concepts: list[Concept], work: Path) -> Outcome:
    artist = own_artist(TinyBase, IMAGES, IMAGE_SEED, SAMPLING_STEPS, job.guidance)
    with sequence_folder(work, job.name) as folder:
        taught = teach_all(folder, concepts, job.settings, TinyBase)
        encoder = EfficientNetLite0()
        found = measure_all(taught, artist, encoder, TinyBase, TRIALS)
    t2i = _t2i(concepts, [encoder(images) for images in found.drawn])
    return Outcome({**found.values, "t2i": t2i}, found.files)


def _joint(job: Job, concepts: list[Concept]) -> Outcome:
    start = time.process_time()
    base, tokens = train_jointly(concepts, job.settings)
    seconds, peak = time.process_time() - start, peak_mb()
    drawn = [
        drawn_jointly(base, tokens, concept.prompt, IMAGES, IMAGE_SEED, SAMPLING_STEPS, job.guidance)
        for concept in concepts
    ]
    encoder = EfficientNetLite0()
    real = [prepare(concept, base.resolution)[0] for concept in concepts]
    features = [encoder(images) for images in drawn]
    cells = [measure_cell(encoder(r), x, None) for r, x in zip(real, features, strict=True)]
    mean = {name: sum(cell[name] for cell in cells) / len(cells) for name in cells[0]}
    # One model, one turn: nothing comes after.
    row = {
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
    return Outcome(row, {SHEET: sheet({"real": real, "all at once": drawn}, [concept.name for concept in concepts])})


def _t2i(concepts: list[Concept], features: list[Tensor]) -> float:
    """Mean over the concepts, by the encoder that reads."""
    aligned = AlignedText()
    prompts = [aligned.encode_text(prompt_without_token(each.prompt, each.token)) for each in concepts]
    values = [float(text_similarity(p, aligned.carry(x))) for p, x in zip(prompts, features, strict=True)]
    return sum(values) / len(values)
