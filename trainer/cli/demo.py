"""The demo: three bundled concepts in sequence on the embedded base, and a report of what was learned and kept."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..apply import apply_sequence
from ..bases.tiny.base import TinyBase
from ..classifier import Classification, classify
from ..concept import Concept, prepare
from ..concept_set import load_member
from ..denoiser import Conditioning
from ..disk.sequence import ConceptSequence
from ..images import mosaic
from ..plots import bar_chart_grid, heat_map, image_grid, line_chart
from ..prompts import base_prompt
from ..report import Code, Figure, Heading, Paragraph, Section, Table, write_report
from ..sampling import generate
from ..settings import TrainSettings
from ..teach import teach
from .arguments import Bar

SAMPLES = Path(__file__).parents[1] / "bases" / "tiny" / "samples"
CONCEPTS = ("fox", "sunflower", "guitar")
# What suits the embedded base: chosen on other concepts than the ones it is reported on (see benchmarks/).
TINY_SETTINGS = TrainSettings(
    steps=200,
    batch_size=8,
    rank=8,
    learning_rate=1.6e-2,
    token_learning_rate=4e-3,
    schedule="cosine",
    fisher_draws=200,
    low_memory=False,
)
IMAGES, TRIALS, THUMBNAIL, GUIDANCE = 4, 8, 192, 2.0


def load_sample(name: str, folder: Path = SAMPLES) -> Concept:
    """A bundled concept."""
    return load_member(folder, name)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Where to, and how."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/demo"),
        help="what was trained there before is found again (default: %(default)s)",
    )
    parser.add_argument("--recipe", default=TINY_SETTINGS.recipe, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=TINY_SETTINGS.steps, help="a concept (default: %(default)s)")


def run_demo(arguments: argparse.Namespace) -> None:
    """Teach, measure after every task, write the report."""
    settings = replace(TINY_SETTINGS, recipe=arguments.recipe, steps=arguments.steps)
    out: Path = arguments.out
    base = TinyBase()
    line = ConceptSequence.create(out / "sequence", base.fingerprint)
    concepts = [load_sample(name) for name in CONCEPTS]
    pictures = [("before", _pictures(line, concepts))]
    with Bar() as bar:
        for number, concept in enumerate(concepts, start=1):
            bar.label = f"concept {number} of {len(concepts)}, {concept.name}: "
            line = teach(TinyBase(), concept, settings, line, bar)
            pictures.append((f"after {concept.name}", _pictures(line, concepts)))
    write_report(out / "report.html", "Continual LoRA demo", _sections(line, concepts, settings, pictures))
    print(f"Report: {(out / 'report.html').resolve()}")


def _pictures(line: ConceptSequence, concepts: list[Concept]) -> list[Image.Image]:
    """Four images for each concept, from the model as it is; what is not taught yet by its class noun."""
    base = TinyBase()
    tokens = apply_sequence(base, line) if line.head else {}
    with torch.no_grad():
        empty = base.encode_prompt("", {})
        squares = []
        for concept in concepts:
            known = concept.token in tokens
            prompt = base.encode_prompt(concept.prompt if known else f"photo of a {concept.class_noun}", tokens)
            squares.append(mosaic(generate(base, prompt, empty, IMAGES, seed=1, guidance=GUIDANCE), THUMBNAIL))
    return squares


class _Scores:
    """Errors and scores of every concept's images after every task."""

    def __init__(self, line: ConceptSequence, concepts: list[Concept], settings: TrainSettings) -> None:
        self.errors: list[list[float | None]] = []
        self.accuracies: list[list[float | None]] = []
        self.last: Tensor
        for number in range(1, len(concepts) + 1):
            base = TinyBase()
            tokens = apply_sequence(base, line.up_to(number))
            taught = concepts[:number]
            with torch.no_grad():
                candidates = [base.encode_prompt(concept.prompt, tokens) for concept in taught]
                candidates.append(base.encode_prompt(base_prompt(settings.base_concept, taught[0].class_noun), tokens))
            errors, accuracies = [], []
            for index, concept in enumerate(taught):
                result = self._classify(base, concept, candidates)
                errors.append(float(result.errors[index].mean()))
                accuracies.append(float((result.predicted == index).float().mean()))
                if number == len(concepts):
                    self.last = result.scores if index == 0 else torch.cat([self.last, result.scores], dim=1)
            missing = [None] * (len(concepts) - number)
            self.errors.append([*errors, *missing])
            self.accuracies.append([*accuracies, *missing])

    @staticmethod
    def _classify(base: TinyBase, concept: Concept, candidates: list[Conditioning]) -> Classification:
        images, _ = prepare(concept, base.resolution)
        with torch.no_grad():
            return classify(base, base.encode_images(images), candidates, TRIALS, seed=0, pruned=False)


def _sections(
    line: ConceptSequence,
    concepts: list[Concept],
    settings: TrainSettings,
    pictures: list[tuple[str, list[Image.Image]]],
) -> list[Section]:
    scores = _Scores(line, concepts, settings)
    names = [concept.name for concept in concepts]
    rows = [f"after {name}" for name in names]
    real = [mosaic(prepare(concept, 64)[0], THUMBNAIL) for concept in concepts]
    rows_of_pictures = [real, *(row for _, row in pictures)]
    grid = image_grid(rows_of_pictures, ["real", *(label for label, _ in pictures)], names, cell=THUMBNAIL)
    logs = {task.concept: _smooth(line.log(task)["loss"]) for task in line.tasks}
    labels = [f"<{concept.token}>" for concept in concepts] + ["base concept"]
    forgotten = [scores.errors[-1][j] - scores.errors[j][j] for j in range(len(names))]  # type: ignore[operator]
    return [
        Paragraph(
            f"Three concepts that the base model has never seen, taught one after another with the recipe "
            f"{settings.recipe}; each training saw only its own images."
        ),
        Figure(grid, "Real images, then what the model draws before and after each concept."),
        Heading("What was kept"),
        Figure(heat_map(scores.errors, rows, names, "Denoising error"), "Rows: after each task. Lower is better."),
        Table(
            ["concept", "error right after its task", "error at the end", "forgotten", "DC accuracy at the end"],
            [
                [name, scores.errors[j][j], scores.errors[-1][j], forgotten[j], scores.accuracies[-1][j]]
                for j, name in enumerate(names)
            ],
        ),
        Heading("Diffusion classifier scores"),
        Figure(
            bar_chart_grid(labels, scores.last.T.tolist()[:: max(1, scores.last.shape[1] // 6)]),
            "How well each prompt explains an image of each concept, after the last task.",
        ),
        Heading("Training"),
        Figure(line_chart(logs, "Loss", "step", "denoising error"), "Mean over 20 steps."),
        Code(json.dumps(line.tasks[-1].settings, indent=1)),
    ]


def _smooth(values: list[float], width: int = 20) -> list[float]:
    return [sum(part) / len(part) for end in range(1, len(values) + 1) if (part := values[max(0, end - width) : end])]
