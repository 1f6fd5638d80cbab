"""What each option for small GPUs saves and costs: `python -m benchmarks.small_gpu --comfyui DIR`.

On Stable Diffusion 1.5 with random weights at 256 pixels, like `host_speed`; every option has a process of its own,
since a peak of memory lasts. Seconds are for one image, the median of some steps. Memory is what a training adds to the
loaded base. Writes results/small_gpu.json: for each option both over those of the training that it is compared with.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.host_speed import CHECKPOINTS
from benchmarks.host_works import Host, fisher, training
from benchmarks.measuring import in_own_process, peak, reset_peak, resident, seconds_of
from tests.comfy.checkpoint import build_checkpoint

RESULT = Path(__file__).with_name("results") / "small_gpu.json"
STEPS = 5


@dataclass(frozen=True)
class Case:
    """An option.

    Attributes:
        settings: that it changes.
        weights: number format in which the base is held.
        against: the case that it is compared with.
        fisher: whether a draw of the Fisher is measured and not a training step, with `low_memory` or without.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    weights: str = "fp32"
    against: str = "plain"
    fisher: bool | None = None

    @property
    def images(self) -> int:
        """How many a step takes."""
        return int(self.settings.get("batch_size", 1)) * int(self.settings.get("gradient_accumulation", 1))


FREE = {"learning_rate": 1.0, "optimizer": "prodigy"}
CASES = {
    "plain": Case(),
    "gradient_checkpointing": Case({"gradient_checkpointing": True}),
    "mixed_precision bf16": Case({"mixed_precision": "bf16"}),
    "mixed_precision bf16, weights in bf16": Case({"mixed_precision": "bf16"}, "bf16"),
    "batch_size 4": Case({"batch_size": 4}),
    "batch_size 4, gradient_checkpointing": Case(
        {"batch_size": 4, "gradient_checkpointing": True}, against="batch_size 4"
    ),
    "gradient_accumulation 4": Case({"gradient_accumulation": 4}, against="batch_size 4"),
    "optimizer prodigy": Case(FREE),
    "optimizer adamw_schedulefree": Case({"optimizer": "adamw_schedulefree"}),
    "Fisher draw of 3 prompts, low_memory": Case(fisher=True),
    "Fisher draw of 3 prompts": Case(fisher=False),
}


def measured(host: Host, case: Case) -> dict[str, float]:
    """Median seconds for an image, and the bytes that the work adds at its peak to the loaded base."""
    host.base()  # the host has put the model where it computes
    loaded = resident()
    work = training(host, **case.settings) if case.fisher is None else fisher(host, low_memory=case.fisher)
    reset_peak()
    seconds = [seconds_of(work) for _ in range(STEPS + 1)]
    return {"seconds": statistics.median(seconds[1:]) / case.images, "bytes": peak() - loaded}


def main() -> None:
    """Measure every option in turn."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    checkpoint = build_checkpoint(args.comfyui.resolve(), "sd15_full", CHECKPOINTS)
    if args.case:
        case = CASES[args.case]
        print("\n" + json.dumps(measured(Host(args.comfyui, checkpoint, case.weights), case)))
        return
    found: dict[str, dict[str, float]] = {}
    for name in CASES:
        found[name] = in_own_process("benchmarks.small_gpu", "--case", name, "--comfyui", args.comfyui)
        print(name, found[name], flush=True)
    ratios = {
        name: {key: found[name][key] / found[case.against][key] for key in ("seconds", "bytes")}
        | {"against": case.against, "measured": found[name]}
        for name, case in CASES.items()
    }
    RESULT.write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(ratios, indent=2))


if __name__ == "__main__":
    main()
