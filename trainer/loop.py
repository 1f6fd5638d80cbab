"""The training loop: one page, a generator."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .adapters.adapter import Adapter
from .denoiser import Conditioning, Denoiser
from .losses.min_snr import mean_error
from .methods.method import Method
from .settings import TrainSettings
from .task import StepRecord, step_rng
from .training.buckets import Bucket, drawn_batches
from .training.divergence import check_numbers
from .training.memory import Halving
from .training.optimizers import set_training
from .training.precision import clipped_norm
from .training.prior import Prior
from .training.schedule import schedule_factor
from .training.state import TrainState
from .work import ALONE, Work


def train_concept(
    denoiser: Denoiser,
    buckets: Sequence[Bucket],
    encode: Callable[[Tensor, torch.Generator], Conditioning],
    state: TrainState,
    methods: Iterable[Method],
    settings: TrainSettings,
    seed: str,
    prior: Prior | None = None,
    work: Work = ALONE,
) -> Iterator[StepRecord]:
    """Train until `settings.steps`, then leave what is handed on in the adapter and the token.

    `state.whole` says whether an exception came between two steps or inside one.

    Args:
        denoiser: the view that carries the adapter.
        buckets: the images, one bucket for each shape.
        encode: indices of images [B] and what draws at random of their captions -> prompts, with the token's graph.
        state: goes on from its step.
        methods: add their penalties.
        settings: steps, batch size, schedule, clipping.
        seed: of the task, "<seed>/<index>".
        prior: pictures of the class noun; their error on as many as the batch is added to the loss.
        work: who does it.
    """
    set_training(state.optimizer, True)
    halving = Halving(settings, work)

    def attempt(passes: int) -> tuple[float, float]:
        state.optimizer.zero_grad(set_to_none=True)
        return _backward(denoiser, buckets, encode, state, methods, settings, seed, prior, passes)

    while state.step < settings.steps:
        loss, penalty = halving.run(attempt, f"Step {state.step + 1}")
        norm = clipped_norm(state.scaler, state.optimizer, state.trained(), settings.gradient_clip)
        check_numbers(loss, penalty, norm, f"step {state.step + 1} of {settings.steps}")
        for group, peak in zip(state.optimizer.param_groups, state.peaks, strict=True):
            group["lr"] = peak * schedule_factor(state.step, settings.steps, settings.warmup_steps, settings.schedule)
        state.whole = False
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.step += 1
        state.update_average()
        state.log(loss, penalty)
        state.whole = True
        values = {"adapter_norm": state.norms[-1], **({"loss_scale": state.scales[-1]} if state.scales else {})}
        yield StepRecord("train", state.step, settings.steps, state.losses[-1], state.penalties[-1], values)
    state.finish()


def _backward(
    denoiser: Denoiser,
    buckets: Sequence[Bucket],
    encode: Callable[[Tensor, torch.Generator], Conditioning],
    state: TrainState,
    methods: Iterable[Method],
    settings: TrainSettings,
    seed: str,
    prior: Prior | None,
    passes: int,
) -> tuple[float, float]:
    """The gradients of a step, every batch in so many passes; returns the loss and the penalty. See `train_concept`."""
    added = total_penalty(methods, state.adapter)
    zero = torch.zeros((), device=denoiser.device)
    penalty, loss = zero if added is None else added, zero.clone()
    rng, captions_rng = step_rng(seed, "train", state.step), step_rng(seed, "captions", state.step)
    parts, size, gamma = settings.gradient_accumulation, settings.batch_size, settings.min_snr_gamma
    pending = penalty  # goes along with the first pass
    for indices, whole in drawn_batches(denoiser, buckets, parts, size, rng):
        beside = prior.drawn(denoiser, len(whole), rng).parts(passes) if prior is not None else [None] * passes
        for index, batch, drawn in zip(indices.tensor_split(passes), whole.parts(passes), beside, strict=True):
            error = mean_error(batch, encode(index, captions_rng), gamma)
            if prior is not None and drawn is not None:  # both or neither
                error = error + mean_error(drawn, prior.prompt, gamma)
            share = error * (len(batch) / (parts * size))
            state.scaler.scale(share + pending).backward()
            loss, pending = loss + share.detach(), zero
    return loss.item(), penalty.item()


def total_penalty(methods: Iterable[Method], adapter: Adapter) -> Tensor | None:
    """What all methods together add to the loss, a scalar with its graph; None if nothing."""
    penalties = [p for method in methods if (p := method.penalty(adapter)) is not None]
    return torch.stack(penalties).sum() if penalties else None
