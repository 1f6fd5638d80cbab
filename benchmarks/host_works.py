"""The kinds of work that are timed on a host's model, Stable Diffusion 1.5's, at 256 pixels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft  # noqa: F401  # now, so that what it loads is not taken for memory of the work
import torch
from torch import Tensor

from trainer.adapters.lora import LoraAdapter
from trainer.bases.comfyui.checkpoint import load_checkpoint
from trainer.classifier import classify
from trainer.concept import concept_from_batch
from trainer.denoiser import Conditioning, Denoiser
from trainer.loop import train_concept
from trainer.losses.denoising import draw_batch
from trainer.methods.dsc import DSC
from trainer.methods.ewc import EWC
from trainer.settings import TrainSettings
from trainer.task import TrainedTask
from trainer.training.buckets import Bucket
from trainer.training.checkpointing import checkpoint_blocks
from trainer.training.data import TrainingData
from trainer.training.precision import in_format, loss_scaler
from trainer.training.state import TrainState

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIDE, RANK = 32, 4
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

    def adapter(self, base: Denoiser, rank: int = RANK) -> LoraAdapter:
        """A LoRA that is not zero."""
        adapter = LoraAdapter(base.unet, rank, rank, torch.Generator().manual_seed(0))
        rng = torch.Generator().manual_seed(1)
        for parameter in adapter.parameters.values():
            parameter.data = (0.01 * torch.randn(parameter.shape, generator=rng)).to(parameter.device)
        return adapter

    def prompts(self, base: Denoiser, count: int) -> list[Conditioning]:
        """Frozen prompts."""
        with torch.no_grad():
            return [base.encode_prompt(f"photo of a {word}", {}) for word in WORDS[:count]]

    def task(self) -> TrainedTask:
        """A second concept, trained."""
        base = in_format(self.base(), self.settings.mixed_precision)
        adapter = self.adapter(base)
        prompt, base_prompt, earlier = self.prompts(base, 3)
        earlier_state = {name: 0.5 * value for name, value in adapter.state_dict().items()}
        latents = self.latents.to(base.device)
        return TrainedTask(
            base, latents, None, base_prompt, prompt, [earlier], adapter, lambda _: earlier_state, lambda: None, "0/2"
        )


def bare(host: Host) -> Work:
    """The U-Net forward and backward with a LoRA on its keys and values, AdamW, and nothing else."""
    base = in_format(host.base(), host.settings.mixed_precision)
    parameters = list(host.adapter(base).parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    (prompt,) = host.prompts(base, 1)
    x_t, t = host.latents[:1].to(base.device), torch.tensor([500], device=base.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        base.predict(x_t, t, prompt).square().mean().backward()
        optimizer.step()

    return step


def training(host: Host, *, token: bool = False, **changes: Any) -> Work:  # noqa: ANN401
    """A step of the training loop, with changed settings."""
    rates = {"learning_rate": 1e-6, "token_learning_rate": 1e-6 if token else 0.0}
    settings = replace(host.settings, **(rates | changes))
    base = in_format(host.base(), settings.mixed_precision)
    adapter = host.adapter(base, settings.rank)
    if settings.gradient_checkpointing:
        checkpoint_blocks(base.unet)
    scaler = loss_scaler(base, settings.mixed_precision)
    state = TrainState(adapter, base.word_vectors("fox"), settings, scaler)
    frozen = host.prompts(base, 1)[0]

    def encode(_: Tensor, __: torch.Generator) -> Conditioning:
        return base.encode_prompt("photo of a <mine> fox", {"mine": {**state.token}}) if token else frozen

    steps = train_concept(base, [Bucket(host.latents.to(base.device))], encode, state, [], settings, "0/1")
    return lambda: next(steps)


def penalty(host: Host) -> Work:
    """What EWC adds to a step: its penalty, there and back."""
    adapter, method = host.adapter(host.base()), EWC(host.settings)
    method.anchor = {name: value.detach().clone() for name, value in adapter.parameters.items()}
    method.fisher = {name: torch.ones_like(value) for name, value in method.anchor.items()}

    def work() -> None:
        added = method.penalty(adapter)
        assert added is not None
        added.backward()

    return work


def separate_passes(host: Host) -> Work:
    """A forward and a backward pass for each of three prompts."""
    task = host.task()
    prompts = [task.prompt, task.base_prompt, *task.earlier_prompts]

    def work() -> None:
        batch = draw_batch(task.denoiser, task.latents, None, torch.tensor([0]), torch.Generator().manual_seed(0))
        for prompt in prompts:
            batch.error(prompt).mean().backward()

    return work


def fisher(host: Host, *, low_memory: bool) -> Work:
    """A draw of the Fisher with scores over three prompts."""
    task = host.task()
    draws = EWC(replace(host.settings, low_memory=low_memory), classifier=True).gradients(task, 10_000)
    return lambda: next(draws)


def consolidation(host: Host, *, classifier: bool) -> Work:
    """A step of DSC."""
    settings = replace(host.settings, consolidation=1.0, low_memory=False)
    steps = DSC(settings, classifier=classifier).consolidate(host.task())
    return lambda: next(steps)


def latents(host: Host, *, cached: bool) -> Work:
    """Make the latents of four images, or read them."""
    base, folder = host.base(), TemporaryDirectory()
    concept = concept_from_batch(torch.rand(4, 8 * SIDE, 8 * SIDE, 3), token="mine", class_noun="fox")
    settings = replace(host.settings, cache_latents=cached, resolution=8 * SIDE)
    return lambda: TrainingData(base, concept, settings, Path(folder.name), "0/1", lambda _: None)


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
