"""One training on one process and on two, a thread each: `python -m benchmarks.scale`.

On the embedded base, at a batch where a step of one process takes half a second or more. Both are timed in turn,
several times, with nothing else on the machine. Writes results/scale.json: the speed-up, and the share of two
processes' time in which they wait for one another's numbers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import distributed as dist

from trainer.bases.tiny.base import TinyBase
from trainer.cli.demo import load_sample
from trainer.disk.sequence import ConceptSequence
from trainer.processes import launched_work
from trainer.settings import TrainSettings
from trainer.task import StepRecord
from trainer.teach import teach

RESULT = Path(__file__).with_name("results") / "scale.json"
BATCH, STEPS, ROUNDS = 48, 12, 3
SETTINGS = TrainSettings(recipe="lora", steps=STEPS, batch_size=BATCH, rank=8, learning_rate=4e-3)


@contextmanager
def timed_messages() -> Iterator[list[float]]:
    """Seconds of every message between processes, one after another."""
    seconds: list[float] = []
    whole = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}

    def timed(name: str) -> object:
        def message(*args: object) -> None:
            start = time.perf_counter()
            whole[name](*args)
            seconds.append(time.perf_counter() - start)

        return message

    for name in whole:
        setattr(dist, name, timed(name))
    try:
        yield seconds
    finally:
        for name, function in whole.items():
            setattr(dist, name, function)


def part() -> None:
    """Train as one of the launched processes; the first prints the seconds of a step, and those of its messages."""
    torch.set_num_threads(1)
    work = launched_work()
    ends: list[tuple[float, float]] = []
    with TemporaryDirectory() as folder, timed_messages() as messages:
        line = ConceptSequence.create(Path(folder) / "line", TinyBase().fingerprint)

        def on_step(record: StepRecord) -> None:
            ends.append((time.perf_counter(), sum(messages)))

        teach(TinyBase(), load_sample("fox"), SETTINGS, line, on_step, work=work)
    (start, told), (end, told_in_all) = ends[1], ends[STEPS - 1]  # the first steps warm up
    steps = STEPS - 2
    if work.first:
        print("\n" + json.dumps({"step": (end - start) / steps, "messages": (told_in_all - told) / steps}))


def measured(processes: int) -> dict[str, float]:
    """Seconds of a step on so many processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "benchmarks.scale", "--part"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found


def main() -> None:
    """Measure in turn, compare the medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().part:
        part()
        return
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for processes, values in found.items():
            values.append(measured(processes))
            print(processes, values[-1], flush=True)
    one, two = (statistics.median(value["step"] for value in values) for values in found.values())
    share = statistics.median(value["messages"] / value["step"] for value in found[2])
    facts = {"batch_size": BATCH, "seconds_a_step": one, "speed_up_of_two": one / two, "share_of_messages": share}
    RESULT.write_text(json.dumps(facts | {"measured": found}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
