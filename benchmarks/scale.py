"""One training on one process and on two, a thread each: `python -m benchmarks.scale`.

On the embedded base, at a batch where a step of one process takes half a second or more. Both are timed in turn,
several times, with nothing else on the machine. Writes results/scale.json: the speed-up, and the share of two
processes' time in which they wait for one another's numbers, and the bytes of these.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measuring import counted_messages, on_processes
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


def part(folder: Path) -> None:
    """Train as one of the launched processes; the first prints the seconds of a step, and those and the bytes told."""
    torch.set_num_threads(1)
    work = launched_work()
    ends: list[tuple[float, float, int]] = []
    line = ConceptSequence.create(folder / "line", TinyBase().fingerprint)
    with counted_messages() as messages:

        def on_step(_: StepRecord) -> None:
            ends.append((time.perf_counter(), messages.seconds, messages.bytes))

        teach(TinyBase(), load_sample("fox"), SETTINGS, line, on_step, work=work)
    # The first two steps warm up.
    step, told, size = ((last - first) / (STEPS - 2) for first, last in zip(ends[1], ends[STEPS - 1], strict=True))
    if work.first:
        print("\n" + json.dumps({"step": step, "messages": told, "bytes": size}))


def main() -> None:
    """Measure in turn, compare the medians."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    if folder := parser.parse_args().part:
        part(folder)
        return
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for processes, values in found.items():
            with TemporaryDirectory() as line:
                values.append(on_processes(processes, "benchmarks.scale", "--part", line))
            print(processes, values[-1], flush=True)
    one, two = (statistics.median(value["step"] for value in values) for values in found.values())
    share = statistics.median(value["messages"] / value["step"] for value in found[2])
    facts = {"batch_size": BATCH, "seconds_a_step": one, "speed_up_of_two": one / two, "share_of_messages": share}
    facts["bytes_a_step"] = found[2][0]["bytes"]
    RESULT.write_text(json.dumps(facts | {"measured": found}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
