"""What a task costs at the start of a sequence and at its end: `python -m benchmarks.growth`.

Fifty concepts are taught one after another on the embedded base, each with so few steps that what grows with the
sequence is not hidden behind the training. Every recipe has a process of its own with one thread, and some run on two
processes as well. Writes results/growth.json: for each the seconds of a task, the bytes that it leaves and reads, and
what it tells the other process, at 1, 10 and 50 concepts, and the slope of a line through the seconds of all tasks.
Needs a machine with nothing else on it.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.measuring import counted_messages, on_processes, peak
from trainer.bases.tiny.base import TinyBase
from trainer.cli.demo import CONCEPTS, TINY_SETTINGS, load_sample
from trainer.disk.sequence import ConceptSequence
from trainer.overview import task_facts
from trainer.processes import launched_work
from trainer.recipes import RECIPES
from trainer.teach import teach

RESULT = Path(__file__).with_name("results") / "growth.json"
LENGTH, POINTS = 50, (1, 10, 50)
# A median over so many neighbors of a point, since a single task meets slow moments of the machine.
NEIGHBORS = 2
BRIEF = replace(TINY_SETTINGS, steps=10, fisher_draws=10, checkpoint_every=1000)
TOGETHER = ("lora", "lora_ewc_dc", "lora_dsc_ewc_dc", "c_lora")


def part(recipe: str, folder: Path) -> None:
    """Teach all; the first of the processes prints what each task cost."""
    torch.set_num_threads(1)
    work, tasks = launched_work(), list[dict[str, float]]()
    line = ConceptSequence.create(folder / "line", TinyBase().fingerprint)
    settings = replace(BRIEF, recipe=recipe)
    with counted_messages() as messages:
        for turn in range(1, LENGTH + 1):
            concept = replace(load_sample(CONCEPTS[turn % len(CONCEPTS)]), token=f"concept-{turn}", name=f"c{turn}")
            start, told = time.perf_counter(), messages.bytes
            line = teach(TinyBase(), concept, settings, line, work=work)
            tasks.append({"seconds": time.perf_counter() - start, "told": messages.bytes - told, **_on_disk(line)})
    if work.first:
        print("\n" + json.dumps({"tasks": tasks, "peak": peak()}))


def _on_disk(line: ConceptSequence) -> dict[str, float]:
    """Bytes that the newest task left, and of the manifest that every task reads; seconds until a page shows all."""
    newest = line.folder(line.tasks[-1])
    start = time.perf_counter()
    task_facts(line, line.tasks)
    return {
        "state": sum(path.stat().st_size for path in newest.rglob("*.safetensors")),
        "manifest": (line.root / "manifest.json").stat().st_size,
        "page": time.perf_counter() - start,
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The figures at the points, and by how much a task takes longer for each one before it.

    Args:
        found: what `part` has printed.
    """
    tasks = found["tasks"]
    at = {}
    for point in POINTS:
        near = tasks[max(0, point - 1 - NEIGHBORS) : point + NEIGHBORS]
        at[str(point)] = {name: statistics.median(task[name] for task in near) for name in tasks[0]}
    # The first task also loads what stays loaded.
    turns, seconds = range(2, LENGTH + 1), [task["seconds"] for task in tasks[1:]]
    return {"at": at, "slope": statistics.linear_regression(turns, seconds).slope, "peak": found["peak"]}


def main() -> None:
    """Measure every recipe; each part in processes of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part(args.part[0], Path(args.part[1]))
        return
    results: dict[str, dict[str, Any]] = {}
    for recipe in RECIPES:
        for processes in (1, 2) if recipe in TOGETHER else (1,):
            with TemporaryDirectory() as folder:
                found = on_processes(processes, "benchmarks.growth", "--part", recipe, folder)
            results.setdefault(recipe, {})[str(processes)] = summary(found)
            print(recipe, processes, results[recipe][str(processes)], flush=True)
    RESULT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
