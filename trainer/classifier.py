"""The diffusion classifier: how well does each prompt explain an image?

e_i is the denoising error of one x_t under prompt i, and p = softmax(-e / tau) over the prompts.
Source: Li et al., arXiv 2303.16203; Jha et al., arXiv 2410.00700, section 3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Conditioning, Denoiser
from .losses.denoising import NoisedBatch


def dc_log_scores(errors: Tensor, temperature: float) -> Tensor:
    """Log p = log_softmax(-e / tau) over the prompts.

    Args:
        errors: denoising errors, [K, B], all from the same x_t.
        temperature: tau > 0, in the unit of the errors.

    Returns:
        [K, B], <= 0; exp sums to 1 over K.
    """
    return torch.log_softmax(-errors / temperature, dim=0)


def entropy(log_scores: Tensor) -> Tensor:
    """-sum_i p_i log p_i in nats, [K, B] -> [B], 0..log K."""
    return -(log_scores.exp() * log_scores).sum(0)


def calibrated_temperature(errors: Tensor) -> float:
    """Tau = the mean over draws of the standard deviation of e over the prompts: neither flat nor saturated.

    Ours; the paper is silent. Mean-reduced errors differ by far less than 1, so tau = 1 would make p uniform.

    Args:
        errors: [K, draws], K >= 2.
    """
    return max(float(errors.float().std(0, correction=0).mean()), 1e-8)


def cross_entropy_error_gradient(errors: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Gradient d H(target, p) / d e_i = (target_i - p_i) / tau, for H = -sum_i target_i log p_i.

    Knowing it, the errors are computed without a graph first and each prompt is back-propagated alone with its weight:
    the memory of one U-Net graph instead of K.

    Args:
        errors: [K, B].
        target: the true class one-hot, or a teacher's scores, [K, B], summing to 1 over K.
        temperature: tau > 0.

    Returns:
        [K, B].
    """
    return (target - dc_log_scores(errors, temperature).exp()) / temperature


def prompt_subset(num_earlier: int, size: int, rng: torch.Generator) -> list[int]:
    """Which earlier concepts join c_0 and c_n in a minibatch's prompt set c_k.

    Args:
        num_earlier: n - 1, the concepts taught before.
        size: k, the prompts wanted in all; c_0 and c_n always count.
        rng: on the CPU.

    Returns:
        min(k - 2, n - 1) distinct indices in 0..n-2, at random; the whole set has min(k, n + 1) prompts.
    """
    return torch.randperm(num_earlier, generator=rng)[: max(size - 2, 0)].tolist()


def weighted_backward(batch: NoisedBatch, prompts: list[Conditioning], weights: Tensor, low_memory: bool) -> None:
    """Back-propagate sum_{i,b} w_ib e_ib with constant weights: one graph a prompt (low memory), or all in one pass."""
    groups = [[i] for i in range(len(prompts))] if low_memory else [list(range(len(prompts)))]
    for group in groups:
        (batch.errors([prompts[i] for i in group]) * weights[group]).sum().backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Classification:
    """What the classifier found.

    Attributes:
        errors: mean error of each prompt over the trials it was given, [K, B].
        trials: how many trials went into each, [K, B].
        temperature: tau of the scores.
    """

    errors: Tensor
    trials: Tensor
    temperature: float

    @property
    def scores(self) -> Tensor:
        """Scores p = softmax(-e / tau), [K, B]."""
        return dc_log_scores(self.errors, self.temperature).exp()

    @property
    def predicted(self) -> Tensor:
        """Argmin of the error among the prompts that were given every trial, [B]."""
        return self.errors.masked_fill(self.trials < self.trials.amax(0), torch.inf).argmin(0)


def stratified_timesteps(trials: int, rng: torch.Generator) -> Tensor:
    """One uniform draw from each of `trials` equal parts of 0..999, shuffled, so that any prefix covers the range."""
    parts = (torch.arange(trials) + torch.rand(trials, generator=rng)) * (1000 / trials)
    return parts.long().clamp(max=999)[torch.randperm(trials, generator=rng)]


def pruning_schedule(num_prompts: int, trials: int, pruned: bool) -> list[tuple[int, int]]:
    """Stages of (trials so far, prompts kept for it): halve the prompts as the trials grow.

    Source: Li et al., arXiv 2303.16203, algorithm 2; the halving is ours.
    """
    if not pruned or num_prompts <= 2:
        return [(trials, num_prompts)]
    stages, kept, done = [], num_prompts, max(1, trials // 4)
    while kept > 2 and done < trials:
        stages.append((done, kept))
        kept, done = max(2, (kept + 1) // 2), min(trials, done * 2)
    return [*stages, (trials, kept)]


def classify(
    denoiser: Denoiser,
    latents: Tensor,
    prompts: list[Conditioning],
    trials: int,
    seed: int,
    *,
    pruned: bool = True,
    temperature: float = 0.0,
    on_pass: Callable[[int, int], None] = lambda done, total: None,
) -> Classification:
    """Mean denoising error of every image under every prompt; every trial's (t, noise) is shared by all prompts.

    Args:
        denoiser: the model.
        latents: x_0, [B, C, H, W].
        prompts: K prompts.
        trials: T, the stratified (t, noise) draws.
        seed: of the draws.
        pruned: drop the worse prompts after few trials and spend the rest on the better ones.
        temperature: tau; 0 calibrates it to the spread of the errors.
        on_pass: told (done, at most in all) after each pass of the U-Net; may raise to stop.

    Returns:
        Errors [K, B]; a dropped prompt keeps the mean of the trials it had.
    """
    rng = torch.Generator().manual_seed(seed)
    timesteps = stratified_timesteps(trials, rng)
    noises = torch.randn(trials, *latents.shape[1:], generator=rng)
    total = torch.zeros(len(prompts), len(latents))
    count = torch.zeros_like(total)
    alive = torch.ones_like(total, dtype=torch.bool)
    begin, done = 0, 0
    for end, kept in pruning_schedule(len(prompts), trials, pruned):
        if kept < len(prompts):
            ranks = (total / count.clamp_min(1)).masked_fill(~alive, torch.inf).argsort(0).argsort(0)
            alive &= ranks < kept
        for trial, prompt, samples in _passes(range(begin, end), alive):
            done += 1
            t = timesteps[trial].expand(len(samples)).to(latents.device)
            noise = noises[trial].to(latents).expand(len(samples), *latents.shape[1:])
            with torch.no_grad():
                error = NoisedBatch(denoiser, latents[samples], t, noise).error(prompts[prompt])
            total[prompt, samples] += error.cpu()
            count[prompt, samples] += 1
            on_pass(done, trials * len(prompts))
        begin = end
    errors = total / count
    return Classification(errors, count, temperature or calibrated_temperature(errors))


def _passes(trials: range, alive: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(trial, prompt, indices of the images for which the prompt is still in question)."""
    for trial in trials:
        for prompt in range(alive.shape[0]):
            samples = alive[prompt].nonzero()[:, 0]
            if len(samples):
                yield trial, prompt, samples
