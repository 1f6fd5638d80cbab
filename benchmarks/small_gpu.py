"""What each option for small GPUs saves and costs: `python -m benchmarks.small_gpu --comfyui DIR`.

On Stable Diffusion 1.5 with random weights at 256 pixels, like `host_speed`; every option has a process of its own,
since a peak of memory lasts. Seconds are for one image, the median of some steps. Memory is what a training adds to the
loaded base. Writes results/small_gpu.json, on a GPU results/small_gpu_cuda.json: for each option both over those of the
training that it is compared with.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.host_speed import CHECKPOINTS
from benchmarks.host_works import Host, Work, fisher, latents, training
from benchmarks.measuring import in_own_process, peak, reset_peak, resident, result_file, seconds_of
from tests.comfy.checkpoint import build_checkpoint

RESULT = result_file("small_gpu")
STEPS = 5


@dataclass(frozen=True)
class Case:
    """An option.

    Attributes:
        work: what is measured.
        images: how many it takes at a time.
        weights: number format in which the base is held.
        against: the case that it is compared with.
    """

    work: Callable[[Host], Work] = training
    images: int = 1
    weights: str = "fp32"
    against: str = "plain"


BATCH, DRAW, LATENTS = "batch_size 4", "Fisher draw of 3 prompts", "latents of 4 images"
RANK_128 = "rank 128"  # below about 8 no factor has the 4,096 numbers from which 8 bits are taken
CASES = {
    "plain": Case(),
    "gradient_checkpointing": Case(partial(training, gradient_checkpointing=True)),
    "mixed_precision bf16": Case(partial(training, mixed_precision="bf16")),
    "mixed_precision bf16, weights in bf16": Case(partial(training, mixed_precision="bf16"), weights="bf16"),
    BATCH: Case(partial(training, batch_size=4), 4),
    f"{BATCH}, gradient_checkpointing": Case(
        partial(training, batch_size=4, gradient_checkpointing=True), 4, against=BATCH
    ),
    "gradient_accumulation 4": Case(partial(training, gradient_accumulation=4), 4, against=BATCH),
    "optimizer prodigy": Case(partial(training, learning_rate=1.0, optimizer="prodigy")),
    "optimizer adamw_schedulefree": Case(partial(training, optimizer="adamw_schedulefree")),
    RANK_128: Case(partial(training, rank=128)),
    f"{RANK_128}, optimizer adamw8bit": Case(partial(training, rank=128, optimizer="adamw8bit"), against=RANK_128),
    DRAW: Case(partial(fisher, low_memory=False)),
    f"{DRAW}, low_memory": Case(partial(fisher, low_memory=True), against=DRAW),
    f"{DRAW}, low_memory, against a step": Case(partial(fisher, low_memory=True)),
    LATENTS: Case(partial(latents, cached=False), 4),
    f"{LATENTS}, cache_latents": Case(partial(latents, cached=True), 4, against=LATENTS),
}
if torch.cuda.is_available():
    CASES["mixed_precision fp16"] = Case(partial(training, mixed_precision="fp16"))


def measured(host: Host, case: Case) -> dict[str, float]:
    """Median seconds for an image, and the bytes that the work adds at its peak to the loaded base."""
    host.base()  # the host has put the model where it computes
    loaded = resident()
    work = case.work(host)
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
