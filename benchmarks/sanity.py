"""The paper's two sanity checks on the six reported concepts, seed 0: `python -m benchmarks.sanity`.

After every task, which share of the training images the diffusion classifier puts under their own concept, for a LoRA
with nothing against forgetting, with EWC, and with EWC that knows the classes. And how the Fisher information of the
denoising loss differs from the one that knows the classes: spectra of three layers after the last task, from the same
draws. Writes results/sanity.json and two pictures for docs/benchmark.md; what was taught is kept in build/benchmark.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from benchmarks.concepts import SETS
from benchmarks.figures import stack_sheets
from benchmarks.plans import job
from benchmarks.report import BUILD, DOCS
from benchmarks.run import TRIALS
from trainer.bases.tiny.base import TinyBase
from trainer.concept_set import load_concepts
from trainer.disk.sequence import ConceptSequence
from trainer.evaluation.dc_accuracy import dc_accuracy
from trainer.evaluation.fisher_spectrum import Spectrum, fisher_spectrum, restored_task
from trainer.evaluation.report import diagonal_chart, spectrum_chart
from trainer.plots import heat_map
from trainer.sweep.one_run import teach_all

RESULT = Path(__file__).with_name("results") / "sanity.json"
RECIPES = ("lora", "lora_ewc", "lora_ewc_dc")
DRAWS = 200


def taught(recipe: str) -> ConceptSequence:
    """The sequence of the benchmark's table."""
    folder, concepts = BUILD / "sanity" / recipe, load_concepts(SETS["reported"])
    return teach_all(folder, concepts, job(recipe, 0, "reported", folder).settings, TinyBase).line


def accuracy_course(line: ConceptSequence) -> list[list[float]]:
    """Row i: of each concept up to task i, the share that is recognised after it."""
    found = dc_accuracy(TinyBase, line, range(len(line.tasks)), TRIALS)
    return [[round(found[i, j], 4) for j in range(i + 1)] for i in range(len(line.tasks))]


def figures_of(spectrum: Spectrum) -> dict[str, float]:
    """The trace, the share of its largest eigenvalue, and how many equal ones would be as spread out."""
    values = spectrum.eigenvalues
    trace = float(values.sum())
    return {
        "trace": trace,
        "share_of_largest": float(values[0]) / trace,
        "participation": trace**2 / float(values.square().sum()),
    }


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures in a row."""
    row = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    row.paste(left, (0, 0))
    row.paste(right, (left.width, 0))
    return row


def main() -> None:
    """Teach, classify, weigh, write."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.sanity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    lines = {recipe: taught(recipe) for recipe in RECIPES}
    courses, maps = {}, []
    for recipe, line in lines.items():
        courses[recipe] = accuracy_course(line)
        print(recipe, courses[recipe], flush=True)
        names = [task.concept for task in line.tasks]
        table: list[list[float | None]] = [[*row, *[None] * (len(names) - len(row))] for row in courses[recipe]]
        maps.append(heat_map(table, [f"after {name}" for name in names], names, recipe, (0.0, 1.0)))
    settings = job("lora_ewc_dc", 0, "reported", BUILD).settings
    spectra = fisher_spectrum(restored_task(TinyBase(), lines["lora_ewc_dc"]), settings, DRAWS)
    layers = {
        layer: {objective: of_layers[layer] for objective, of_layers in spectra.items()} for layer in spectra["L_den"]
    }
    numbers = {
        layer: {objective: figures_of(spectrum) for objective, spectrum in both.items()}
        for layer, both in layers.items()
    }
    charts = [beside(spectrum_chart(both, layer), diagonal_chart(both, layer)) for layer, both in layers.items()]
    stack_sheets(maps, DOCS / "accuracy.png")
    stack_sheets(charts, DOCS / "spectrum.png")
    facts = {"accuracy": courses, "draws": DRAWS, "spectrum": numbers}
    RESULT.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
