"""Speed and memory on a host's model, as ratios: `python -m benchmarks.host_speed --comfyui DIR`.

The model is Stable Diffusion 1.5's with random weights, 256 pixels, batch 1, in fp32 and in bf16. Steps are timed in
turn in one process, and everything else in another, on views of one model, so that a slow moment of the machine meets
all of it alike. The host's own trainer changes the model that it trains, so it has a process of its own, beside steps
of ours. Writes results/host_speed.json, on a GPU results/host_speed_cuda.json: one object a number format.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from benchmarks.host_works import (
    DTYPES,
    RANK,
    Host,
    Work,
    bare,
    consolidation,
    fisher,
    forward,
    penalty,
    scoring,
    separate_passes,
    training,
)
from benchmarks.measuring import (
    device_name,
    finish,
    in_own_process,
    peak,
    reset_peak,
    resident,
    result_file,
    seconds_of,
)
from tests.comfy.checkpoint import build_checkpoint
from trainer.settings import TrainSettings

RESULT = result_file("host_speed")
CHECKPOINTS = Path("build/checkpoints").resolve()
ROUNDS, CORE_STEPS, TRIALS = 3, 6, 8

STEPS: dict[str, Callable[[Host], Work]] = {
    "bare": bare,
    "step": training,
    "token_step": lambda host: training(host, token=True),
    "ewc_penalty": penalty,
}
PASSES: dict[str, Callable[[Host], Work]] = {
    "step": training,
    "separate": separate_passes,
    "fisher": lambda host: fisher(host, low_memory=False),
    "fisher_low_memory": lambda host: fisher(host, low_memory=True),
    "forward": forward,
    "scores": lambda host: scoring(host, TRIALS, pruned=False),
    "scores_pruned": lambda host: scoring(host, TRIALS, pruned=True),
    "dsc_l2": lambda host: consolidation(host, classifier=False),
    "dsc_dc": lambda host: consolidation(host, classifier=True),
}


def time_steps(host: Host) -> dict[str, float]:
    """Median seconds of each kind of step, three in a row, of which the first is not counted: as in a training."""
    return _medians(host, STEPS, 2 * ROUNDS, 3)


def time_passes(host: Host) -> dict[str, float]:
    """Median seconds of everything else, and of a step beside it."""
    return _medians(host, PASSES, ROUNDS, 1)


def _medians(host: Host, kinds: Mapping[str, Callable[[Host], Work]], rounds: int, repeats: int) -> dict[str, float]:
    """All in turn, there and back, in rounds of which the first is for warming up."""
    works = {name: make(host) for name, make in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name in list(works)[:: (-1) ** number]:
            taken = [seconds_of(works[name]) for _ in range(repeats)]
            if number:
                seconds[name] += taken[1:] or taken
    return {name: statistics.median(values) for name, values in seconds.items()}


def beside_core(host: Host, checkpointing: bool) -> dict[str, Any]:
    """A few steps of ours, then of the host's own trainer: seconds of each, and the peaks of memory.

    Both at the same latents, batch, rank and number format; in the order in which neither finds what the other left.

    Args:
        host: with the model.
        checkpointing: of the host's trainer, which has it by default; ours runs without.
    """
    host.base()  # the host has put the model where it computes
    loaded = resident()
    step = training(host)
    attached = resident() - loaded
    reset_peak()
    with seconds_between_steps() as ours:
        for _ in range(CORE_STEPS + 1):
            step()
    found = {"loaded": loaded, "attached": attached, "steps": ours, "peak": peak()}
    del step
    gc.collect()
    reset_peak()
    with seconds_between_steps() as theirs:
        version = core_trainer(host, CORE_STEPS + 1, checkpointing)
    return {"comfyui": version, "device": device_name(), **found, "core_steps": theirs, "core_peak": peak()}


@contextmanager
def seconds_between_steps() -> Iterator[list[float]]:
    """From each step of an optimizer to the next, in whatever runs in the block."""
    seconds: list[float] = []
    times: list[float] = []

    def stepped(*_: object) -> None:
        finish()
        times.append(time.perf_counter())
        seconds.extend(now - before for before, now in pairwise(times[-2:]))

    hook = register_optimizer_step_post_hook(stepped)
    try:
        yield seconds
    finally:
        hook.remove()


def core_trainer(host: Host, steps: int, checkpointing: bool) -> str:
    """The host's own trainer; returns the host's version."""
    from comfy_extras.nodes_train import TrainLoraNode
    from comfyui_version import __version__ as version

    tokens: Any = host.clip.tokenize("photo of a fox")  # type: ignore[attr-defined]
    positive = host.clip.encode_from_tokens_scheduled(tokens)  # type: ignore[attr-defined]
    dtype = host.settings.mixed_precision.replace("no", "fp32")
    wanted = {"batch_size": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-6, "rank": RANK, "optimizer": "AdamW"}
    wanted |= {"loss_function": "MSE", "seed": 0, "training_dtype": dtype, "lora_dtype": dtype, "algorithm": "LoRA"}
    wanted |= {"gradient_checkpointing": checkpointing, "existing_lora": "[None]", "steps": steps}
    # Newer hosts have more settings.
    given = {"model", "latents", "positive"}
    known = {item.id: item.default for item in TrainLoraNode.define_schema().inputs if item.id not in given}
    arguments = {name: [value] for name, value in (known | wanted).items()}
    # One at a time: it fails on a single batch of latents.
    latents = [{"samples": latent[None]} for latent in host.latents]
    TrainLoraNode.execute([host.model], latents, [positive], **arguments)
    return str(version)


PARTS: dict[str, Callable[[Host], dict[str, Any]]] = {
    "steps": time_steps,
    "passes": time_passes,
    "core": lambda host: beside_core(host, checkpointing=True),
    "core_without_checkpointing": lambda host: beside_core(host, checkpointing=False),
}


def ratios(found: dict[str, dict[str, Any]], settings: TrainSettings) -> dict[str, float]:
    """What is reported of the parts that are there.

    Args:
        found: part -> its figures.
        settings: the node's defaults, whose steps and Fisher draws make a task.
    """
    reported: dict[str, float] = {}
    if steps := found.get("steps"):
        reported |= {
            "step_over_bare": steps["step"] / steps["bare"],
            "token_step_over_bare": steps["token_step"] / steps["bare"],
            "ewc_overhead": steps["ewc_penalty"] / steps["step"],
        }
    if core := found.get("core"):
        reported |= against_core(core, "") | {"attach_over_base": core["attached"] / core["loaded"]}
    if core := found.get("core_without_checkpointing"):
        reported |= against_core(core, "_without_checkpointing")
    if t := found.get("passes"):
        reported |= {
            "fisher_dc_over_separate": t["fisher"] / t["separate"],
            "fisher_dc_low_memory_over_separate": t["fisher_low_memory"] / t["separate"],
            "dc_score_over_separate": t["scores"] / (8 * TRIALS * t["forward"]),
            "pruned_over_unpruned": t["scores_pruned"] / t["scores"],
            "dsc_l2_over_step": t["dsc_l2"] / t["step"],
            "dsc_dc_over_step": t["dsc_dc"] / t["step"],
        }
    if steps and t:
        fisher_seconds = settings.fisher_draws * t["fisher_low_memory"]
        steps_seconds = settings.steps * settings.batch_size * steps["token_step"]
        reported["fisher_share_of_task"] = fisher_seconds / steps_seconds
    return reported


def against_core(core: dict[str, Any], name: str) -> dict[str, float]:
    """The two ratios of a part beside the host's trainer."""
    steps, core_steps = (statistics.median(core[kind]) for kind in ("steps", "core_steps"))
    return {f"core{name}_over_step": core_steps / steps, f"peak_over_core{name}": core["peak"] / core["core_peak"]}


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
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        default=list(PARTS),
        help="measure these alone, and keep the rest of an earlier result; no ratio needs two of them but the share of "
        "the Fisher (default: all)",
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print("\n" + json.dumps(PARTS[args.part](Host(args.comfyui, args.checkpoint, args.dtypes[0]))))
        return
    checkpoint = args.checkpoint or build_checkpoint(args.comfyui.resolve(), "sd15_full", CHECKPOINTS)
    results = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for dtype in args.dtypes:
        found = results.get(dtype, {}).get("measured", {})
        for part in args.parts:
            arguments = {"--part": part, "--dtypes": dtype, "--comfyui": args.comfyui, "--checkpoint": checkpoint}
            found[part] = in_own_process("benchmarks.host_speed", *chain.from_iterable(arguments.items()))
            print(dtype, part, found[part], flush=True)
        results[dtype] = ratios(found, TrainSettings()) | {"measured": found}
        RESULT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
