"""Speed and memory on a host's model, as ratios: `python -m benchmarks.host_speed --comfyui DIR`.

The model is Stable Diffusion 1.5's with random weights, 256 pixels, batch 1, in fp32 and in bf16. What is ours is timed
in turn in one process, on views of one model, so that a slow moment of the machine meets all of it alike. The host's
own trainer changes the model that it trains, so it has a process of its own, beside steps of ours. Writes
results/host_speed.json, one object a number format.
"""

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.host_works import (
    DTYPES,
    RANK,
    Host,
    Work,
    bare,
    consolidation,
    fisher,
    forward,
    scoring,
    separate_passes,
    training,
)
from benchmarks.measuring import in_own_process, peak, reset_peak, resident, seconds_of
from tests.comfy.checkpoint import build_checkpoint
from trainer.settings import TrainSettings

RESULT = Path(__file__).with_name("results") / "host_speed.json"
CHECKPOINTS = Path("build/checkpoints").resolve()
ROUNDS, CORE_STEPS = 5, 2

OURS: dict[str, Callable[[Host], Work]] = {
    "bare": bare,
    "step": training,
    "token_step": lambda host: training(host, token=True),
    "ewc_step": lambda host: training(host, ewc=True),
    "separate": separate_passes,
    "fisher": lambda host: fisher(host, low_memory=False),
    "fisher_low_memory": lambda host: fisher(host, low_memory=True),
    "forward": forward,
    "scores": lambda host: scoring(host, 4, pruned=False),
    "scores_pruned": lambda host: scoring(host, 4, pruned=True),
    "dsc_l2": lambda host: consolidation(host, classifier=False),
    "dsc_dc": lambda host: consolidation(host, classifier=True),
}


def time_ours(host: Host) -> dict[str, float]:
    """Median seconds of each kind, all in turn."""
    works = {name: make(host) for name, make in OURS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS + 1):
        for name, work in works.items():
            seconds[name].append(seconds_of(work))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def beside_core(host: Host) -> dict[str, float]:
    """A few steps of ours, then of the host's own trainer: seconds of a step, and the peaks of memory.

    Both at the same latents, batch, rank and number format; in the order in which neither finds what the other left.
    """
    host.base()  # the host has put the model where it computes
    loaded = resident()
    step = training(host)
    attached = resident() - loaded
    reset_peak()
    seconds = [seconds_of(step) for _ in range(CORE_STEPS + 1)][1:]
    ours = {"step": statistics.median(seconds), "peak": peak()}
    del step
    gc.collect()
    return {"loaded": loaded, "attached": attached, **ours, **core_trainer(host)}


def core_trainer(host: Host) -> dict[str, float]:
    """Seconds a step and peak of the host's own trainer, without the first step."""
    from comfy_extras.nodes_train import TrainLoraNode

    tokens: Any = host.clip.tokenize("photo of a fox")  # type: ignore[attr-defined]
    positive = host.clip.encode_from_tokens_scheduled(tokens)  # type: ignore[attr-defined]
    dtype = host.settings.mixed_precision.replace("no", "fp32")
    wanted = {"batch_size": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-6, "rank": RANK, "optimizer": "AdamW"}
    wanted |= {"loss_function": "MSE", "seed": 0, "training_dtype": dtype, "lora_dtype": dtype, "algorithm": "LoRA"}
    wanted |= {"gradient_checkpointing": False, "existing_lora": "[None]"}
    # Newer hosts have more settings.
    given = {"model", "latents", "positive"}
    known = {item.id: item.default for item in TrainLoraNode.define_schema().inputs if item.id not in given}
    seconds = []
    reset_peak()
    for steps in (1, 1 + CORE_STEPS):
        arguments = {name: [value] for name, value in (known | wanted | {"steps": steps}).items()}
        # One at a time: it fails on a single batch of latents.
        latents = [{"samples": latent[None]} for latent in host.latents]
        seconds.append(seconds_of(partial(TrainLoraNode.execute, [host.model], latents, [positive], **arguments)))
    return {"core_step": (seconds[1] - seconds[0]) / CORE_STEPS, "core_peak": peak()}


PARTS: dict[str, Callable[[Host], dict[str, float]]] = {"times": time_ours, "core": beside_core}


def ratios(found: dict[str, dict[str, float]], settings: TrainSettings) -> dict[str, float]:
    """What is reported.

    Args:
        found: part -> its figures.
        settings: the node's defaults, whose steps and Fisher draws make a task.
    """
    t, core = found["times"], found["core"]
    fisher_seconds = settings.fisher_draws * t["fisher_low_memory"]
    return {
        "step_over_bare": t["step"] / t["bare"],
        "token_step_over_bare": t["token_step"] / t["bare"],
        "core_over_step": core["core_step"] / core["step"],
        "peak_over_core": core["peak"] / core["core_peak"],
        "attach_over_base": core["attached"] / core["loaded"],
        "ewc_overhead": t["ewc_step"] / t["step"] - 1,
        "fisher_dc_over_separate": t["fisher"] / t["separate"],
        "fisher_dc_low_memory_over_separate": t["fisher_low_memory"] / t["separate"],
        "fisher_share_of_task": fisher_seconds / (settings.steps * settings.batch_size * t["token_step"]),
        "dc_score_over_separate": t["scores"] / (8 * 4 * t["forward"]),
        "pruned_over_unpruned": t["scores_pruned"] / t["scores"],
        "dsc_l2_over_step": t["dsc_l2"] / t["step"],
        "dsc_dc_over_step": t["dsc_dc"] / t["step"],
    }


def main() -> None:
    """Measure every number format; each part in a process of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument(
        "--checkpoint", type=Path, help="a Stable Diffusion 1.5 checkpoint (default: random weights, made in build/)"
    )
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES), help="(default: all)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print("\n" + json.dumps(PARTS[args.part](Host(args.comfyui, args.checkpoint, args.dtypes[0]))))
        return
    checkpoint = args.checkpoint or build_checkpoint(args.comfyui.resolve(), "sd15_full", CHECKPOINTS)
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for dtype in args.dtypes:
        found = {}
        for part in PARTS:
            arguments = {"--part": part, "--dtypes": dtype, "--comfyui": args.comfyui, "--checkpoint": checkpoint}
            found[part] = in_own_process("benchmarks.host_speed", *chain.from_iterable(arguments.items()))
            print(dtype, part, found[part], flush=True)
        results[dtype] = ratios(found, TrainSettings()) | {"measured": found}
        RESULT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
