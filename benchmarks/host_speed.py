"""Speed and memory on a host's model, as ratios: `python -m benchmarks.host_speed --comfyui DIR`.

The model is Stable Diffusion 1.5's with random weights, 256 pixels, batch 1, in fp32 and in bf16. What is ours is timed
in turn in one process, on views of one model, so that a slow moment of the machine meets all of it alike. The host's
own trainer changes the model that it trains, and peaks of memory last: these have a process each. Writes
results/host_speed.json, one object a number format.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.comfy.checkpoint import build_checkpoint
from trainer.adapters.lora import LoraAdapter
from trainer.bases.comfyui.checkpoint import load_checkpoint
from trainer.buckets import Bucket
from trainer.classifier import classify
from trainer.denoiser import Conditioning, Denoiser
from trainer.loop import train_concept
from trainer.losses.denoising import draw_batch
from trainer.methods.dsc import DSC
from trainer.methods.ewc import EWC
from trainer.methods.method import Method
from trainer.settings import TrainSettings
from trainer.state import TrainState
from trainer.task import TrainedTask

RESULT = Path(__file__).with_name("results") / "host_speed.json"
CHECKPOINTS = Path("build/checkpoints").resolve()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDE, RANK, ROUNDS, CORE_STEPS = 32, 4, 5, 2
WORDS = ("fox", "guitar", "sunflower", "penguin", "cup", "chair", "house", "boat")
Work = Callable[[], object]


class Host:
    """A host's model and what every kind of work needs of it.

    Args:
        comfyui: a ComfyUI checkout.
        checkpoint: of the model.
        dtype: a key of `DTYPES`.
    """

    def __init__(self, comfyui: Path, checkpoint: Path, dtype: str) -> None:
        self.model, self.clip, self.vae = load_checkpoint(comfyui, checkpoint, DTYPES[dtype])
        self.settings = TrainSettings(
            recipe="lora",
            steps=10_000,
            rank=RANK,
            batch_size=1,
            mixed_precision="bf16" if dtype == "bf16" else "no",
            temperature=0.01,
            num_prompts=3,
        )
        rng = torch.Generator().manual_seed(0)
        self.latents = torch.randn(4, 4, SIDE, SIDE, generator=rng)

    def base(self) -> Denoiser:
        """A fresh view."""
        from trainer.bases.comfyui.base import ComfyBase

        return ComfyBase(self.model, self.clip, self.vae)

    def adapter(self, base: Denoiser) -> LoraAdapter:
        """A LoRA that is not zero."""
        adapter = LoraAdapter(base.unet, RANK, RANK, torch.Generator().manual_seed(0))
        rng = torch.Generator().manual_seed(1)
        for parameter in adapter.parameters.values():
            parameter.data = (0.01 * torch.randn(parameter.shape, generator=rng)).to(parameter.device)
        return adapter

    def prompts(self, base: Denoiser, count: int) -> list[Conditioning]:
        """Frozen prompts."""
        with torch.no_grad():
            return [base.encode_prompt(f"photo of a {word}", {}) for word in WORDS[:count]]

    def autocast(self) -> torch.autocast:
        """As in training."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.autocast(device, torch.bfloat16, enabled=self.settings.mixed_precision == "bf16")

    def task(self) -> TrainedTask:
        """A second concept, trained."""
        base = self.base()
        adapter = self.adapter(base)
        prompt, base_prompt, earlier = self.prompts(base, 3)
        earlier_state = {name: 0.5 * value for name, value in adapter.state_dict().items()}
        latents = self.latents.to(base.device)
        return TrainedTask(
            base, latents, None, base_prompt, prompt, [earlier], adapter, lambda _: earlier_state, lambda: None, "0/2"
        )


def bare(host: Host) -> Work:
    """The U-Net forward and backward with a LoRA on its keys and values, AdamW, and nothing else."""
    base = host.base()
    parameters = list(host.adapter(base).parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    (prompt,) = host.prompts(base, 1)
    x_t, t = host.latents[:1].to(base.device), torch.tensor([500], device=base.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with host.autocast():
            loss = base.predict(x_t, t, prompt).square().mean()
        loss.backward()
        optimizer.step()

    return step


def training(host: Host, *, token: bool = False, ewc: bool = False) -> Work:
    """A step of the training loop."""
    base, methods = host.base(), list[Method]()
    adapter = host.adapter(base)
    settings = replace(host.settings, learning_rate=1e-6, token_learning_rate=1e-6 if token else 0.0)
    if ewc:
        method = EWC(settings)
        method.anchor = {name: value.detach().clone() for name, value in adapter.parameters.items()}
        method.fisher = {name: torch.ones_like(value) for name, value in method.anchor.items()}
        methods.append(method)
    state = TrainState(adapter, base.word_vectors("fox"), settings)
    frozen = host.prompts(base, 1)[0]

    def encode(_: Tensor, __: torch.Generator) -> Conditioning:
        return base.encode_prompt("photo of a <mine> fox", {"mine": {**state.token}}) if token else frozen

    steps = train_concept(base, [Bucket(host.latents.to(base.device))], encode, state, methods, settings, "0/1")
    return lambda: next(steps)


def separate_passes(host: Host) -> Work:
    """A forward and a backward pass for each of three prompts."""
    task = host.task()
    prompts = [task.prompt, task.base_prompt, *task.earlier_prompts]

    def work() -> None:
        batch = draw_batch(task.denoiser, task.latents, None, torch.tensor([0]), torch.Generator().manual_seed(0))
        for prompt in prompts:
            with host.autocast():
                error = batch.error(prompt).mean()
            error.backward()

    return work


def fisher(host: Host, *, low_memory: bool) -> Work:
    """A draw of the Fisher with scores over three prompts."""
    task = host.task()
    draws = EWC(replace(host.settings, low_memory=low_memory), classifier=True).gradients(task, 10_000)

    def draw() -> None:
        with host.autocast():
            next(draws)

    return draw


def consolidation(host: Host, *, classifier: bool) -> Work:
    """A step of DSC."""
    settings = replace(host.settings, consolidation=1.0, low_memory=False)
    steps = DSC(settings, classifier=classifier).consolidate(host.task())
    return lambda: next(steps)


def scoring(host: Host, trials: int, *, pruned: bool) -> Work:
    """Classify one image among eight prompts."""
    base = host.base()
    prompts, latents = host.prompts(base, 8), host.latents[:1].to(base.device)
    return lambda: classify(base, latents, prompts, trials, 0, pruned=pruned)


def forward(host: Host) -> Work:
    """A single pass without a graph."""
    base = host.base()
    (prompt,) = host.prompts(base, 1)
    x_t, t = host.latents[:1].to(base.device), torch.tensor([500], device=base.device)

    def work() -> None:
        with torch.no_grad():
            base.predict(x_t, t, prompt)

    return work


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
            start = time.perf_counter()
            work()
            _finish()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_of_ours(host: Host) -> dict[str, float]:
    """Bytes that the loaded base takes, that attaching adds, and the peak of a few steps."""
    host.base()  # the host has put the model where it computes
    loaded = resident()
    step = training(host)
    attached = resident()
    reset_peak()
    for _ in range(CORE_STEPS + 1):
        step()
    return {"loaded": loaded, "attached": attached - loaded, "peak": peak()}


def core_trainer(host: Host) -> dict[str, float]:
    """Seconds a step and peak of the host's own trainer, at the same latents, batch, rank and number format."""
    from comfy_extras.nodes_train import TrainLoraNode

    host.base()
    tokens: Any = host.clip.tokenize("photo of a fox")  # type: ignore[attr-defined]
    positive = host.clip.encode_from_tokens_scheduled(tokens)  # type: ignore[attr-defined]
    dtype = host.settings.mixed_precision.replace("no", "fp32")
    wanted = {"batch_size": 1, "grad_accumulation_steps": 1, "learning_rate": 1e-6, "rank": RANK, "optimizer": "AdamW"}
    wanted |= {"loss_function": "MSE", "seed": 0, "training_dtype": dtype, "lora_dtype": dtype, "algorithm": "LoRA"}
    wanted |= {"gradient_checkpointing": False, "existing_lora": "[None]"}
    seconds = []
    reset_peak()
    for steps in (1, 1 + CORE_STEPS):
        arguments = {name: [value] for name, value in (wanted | {"steps": steps}).items()}
        start = time.perf_counter()
        # One at a time: it fails on a single batch of latents.
        latents = [{"samples": latent[None]} for latent in host.latents]
        TrainLoraNode.execute([host.model], latents, [positive], **arguments)
        _finish()
        seconds.append(time.perf_counter() - start)
    return {"core_step": (seconds[1] - seconds[0]) / CORE_STEPS, "peak": peak()}


PARTS: dict[str, Callable[[Host], dict[str, float]]] = {
    "times": time_ours,
    "memory": peak_of_ours,
    "core": core_trainer,
}


def resident() -> float:
    """Bytes in use on the device that computes."""
    if torch.cuda.is_available():
        return float(torch.cuda.memory_allocated())
    return _status("VmRSS")


def reset_peak() -> None:
    """Forget the peak so far, which was the loading of the checkpoint."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """The most bytes since `reset_peak`."""
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(found: dict[str, dict[str, float]], settings: TrainSettings) -> dict[str, float]:
    """What is reported.

    Args:
        found: part -> its figures.
        settings: the node's defaults, whose steps and Fisher draws make a task.
    """
    t, memory, core = found["times"], found["memory"], found["core"]
    fisher_seconds = settings.fisher_draws * t["fisher_low_memory"]
    return {
        "step_over_bare": t["step"] / t["bare"],
        "token_step_over_bare": t["token_step"] / t["bare"],
        "core_over_step": core["core_step"] / t["step"],
        "peak_over_core": memory["peak"] / core["peak"],
        "attach_over_base": memory["attached"] / memory["loaded"],
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
            command = [sys.executable, "-m", "benchmarks.host_speed", "--part", part, "--dtypes", dtype]
            command += ["--comfyui", str(args.comfyui), "--checkpoint", str(checkpoint)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[part] = json.loads(done.stdout.splitlines()[-1])
            print(dtype, part, found[part], flush=True)
        results[dtype] = ratios(found, TrainSettings()) | {"measured": found}
        RESULT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
