"""sweep: many trainings that differ in recipe, adapter, strength, seed or concepts, and a table of them."""

import argparse
import sys
from functools import partial
from pathlib import Path

from ..recipes import RECIPES
from ..settings import TrainSettings
from ..sweep.engines import Input
from ..sweep.runs import COLUMNS, DIMENSIONS, NAMED, Measuring, concept_inputs, make, runs_of
from ..sweep.summary import summary
from ..sweep.sweep import Sweep
from ..sweep.table import Table
from .arguments import (
    add_base_arguments,
    add_measuring_arguments,
    add_settings_arguments,
    chosen_base,
    drawing_of,
    settings_of,
)
from .sweeping import add_engine_arguments, engine_of, finish

PLAIN = TrainSettings()
PREFIX = "drawing-"


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """What is combined, where it is run, how it is measured."""
    add = parser.add_argument
    add("concepts", type=Path, nargs="+", help="folders of concepts that are taught in sequence")
    add("--out", type=Path, required=True, help="folder for the table, and for each run its pictures and its course")
    recipes = f"of {', '.join(RECIPES)}"
    add("--recipes", nargs="+", choices=RECIPES, default=[PLAIN.recipe], metavar="RECIPE", help=recipes)
    add("--adapters", nargs="+", choices=("lora", "vera"), default=[PLAIN.adapter], help="of the LoRA recipes")
    strengths = "of the penalty (penalty_weight), for the recipes that have one"
    add("--strengths", type=float, nargs="+", default=[PLAIN.penalty_weight], help=strengths)
    add("--seeds", type=int, nargs="+", default=[PLAIN.seed], help="of every random draw")
    add_engine_arguments(parser, "here")
    add_measuring_arguments(parser, PREFIX)
    add_settings_arguments(parser, without=DIMENSIONS)
    add_base_arguments(parser)


def run_sweep(arguments: argparse.Namespace) -> None:
    """Make the runs that the table lacks."""
    out: Path = arguments.out
    base = chosen_base(arguments)
    inputs = concept_inputs(arguments.concepts)
    measuring = Measuring(
        drawing_of(arguments, PREFIX), arguments.dc_trials, arguments.open_clip, arguments.architecture
    )
    values = {
        "recipe": arguments.recipes,
        "adapter": arguments.adapters,
        "penalty_weight": arguments.strengths,
        "seed": arguments.seeds,
    }
    runs = list(runs_of(inputs, settings_of(arguments), values, measuring, base))
    files = {"checkpoint": base.checkpoint, "open_clip": Path(measuring.open_clip)}
    inputs |= {name: Input.of_file(path) for name, path in files.items() if path and path.is_file()}
    table = Table(out / "table.csv", COLUMNS)
    function = partial(make, measuring, base, arguments.cpus)
    failures = finish(Sweep(runs, table, out), function, engine_of(arguments), inputs, "sweep")
    print(summary(table.rows(), (*NAMED, "settings", "measuring")))
    if failures:
        sys.exit("\n".join([f"{len(failures)} runs failed:", *failures]))
