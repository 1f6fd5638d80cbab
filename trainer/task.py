"""What a method may see of the task at hand, and what a training step reports."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from .adapters.adapter import Adapter
from .denoiser import Conditioning, Denoiser
from .training.precision import NO_SCALER
from .training.state import TrainState
from .work import ALONE, Work


def step_rng(seed: str, phase: str, step: int) -> torch.Generator:
    """The generator of one step: a function of (seed, phase, step), so a resumed training draws what it would have."""
    digest = hashlib.sha256(f"{seed}/{phase}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class StepRecord:
    """One step of any phase.

    Attributes:
        phase: "prior" while the base draws, "train", or the method's own word ("consolidate", "fisher").
        step: 1..total.
        total: steps of this phase.
        loss: mean denoising error of the batch, with prior images plus theirs; 0 while the base draws them.
        penalty: what the methods added to it.
        values: further figures to log, by name: `adapter_norm` in "train", `dc_accuracy` and `dc_entropy` of the scores
            where there are any, and others.
        picture: drawn after this step, if one was due.
    """

    phase: str
    step: int
    total: int
    loss: float
    penalty: float = 0.0
    values: Mapping[str, float] = field(default_factory=dict)
    picture: Image.Image | None = field(default=None, compare=False)


class Kept(Protocol):
    """Where the state of a phase after the training is kept between its steps."""

    def restore(self, state: TrainState) -> None:
        """Go on from what was kept, if anything was."""
        ...

    def save(self, state: TrainState) -> None:
        """Keep it."""
        ...


class Nowhere:
    """For a task that is not being taught: nothing is kept."""

    def restore(self, state: TrainState) -> None:
        """Stay where it is."""

    def save(self, state: TrainState) -> None:
        """Do nothing."""


NOWHERE = Nowhere()


@dataclass(frozen=True)
class TrainedTask:
    """A task after its training; the token is frozen, so a prompt stays what it is.

    Attributes:
        denoiser: the view that carries the adapter.
        latents: x_0 of the task's images, [N, C, h, w].
        masks: [N, 1, h, w] in 0..1, or None.
        base_prompt: c_0.
        prompt: c_n.
        earlier_prompts: c_1 .. c_{n-1}.
        adapter: what was trained, live on the denoiser.
        earlier_adapter: 0-based turn j -> the state of the adapter as task j + 1 left it, read from the sequence.
        penalty: what all methods of the recipe add to the loss now, a scalar with its graph, or None.
        seed: of the task, "<seed>/<index>".
        scaler: of the loss, for gradients in fp16; goes on from where the training left it.
        work: who does it.
        consolidation: where a consolidation is kept between its steps.
    """

    denoiser: Denoiser
    latents: Tensor
    masks: Tensor | None
    base_prompt: Conditioning
    prompt: Conditioning
    earlier_prompts: Sequence[Conditioning]
    adapter: Adapter
    earlier_adapter: Callable[[int], Mapping[str, Tensor]]
    penalty: Callable[[], Tensor | None]
    seed: str
    scaler: torch.amp.GradScaler = NO_SCALER
    work: Work = ALONE
    consolidation: Kept = NOWHERE
