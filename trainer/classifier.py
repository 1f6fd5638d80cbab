"""The diffusion classifier: how well does each prompt explain an image?

The scores are those of losses/scores.py, over many (time, noise) trials. Worse prompts can be dropped early.
Source: Li et al., arXiv 2303.16203; Jha et al., arXiv 2410.00700, section 3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .denoiser import Conditioning, Denoiser
from .errors import ContinualLoraError
from .losses.denoising import NoisedBatch
from .losses.scores import calibrated_temperature, dc_log_scores

AT_ONCE = 8  # samples that a classification puts into a pass


def candidate_prompts(taught: list[str], written: list[str]) -> list[str]:
    """What a classifier chooses between: the prompts of a sequence's concepts, then others, each once.

    Raises:
        ContinualLoraError: there are fewer than two.
    """
    candidates = list(dict.fromkeys([*taught, *(text.strip() for text in written if text.strip())]))
    if len(candidates) < 2:
        raise ContinualLoraError(
            "The classifier chooses between at least two different prompts.",
            f"There are {len(candidates)}.",
            "Write more prompts, or add a sequence.",
        )
    return candidates


@dataclass(frozen=True)
class Classification:
    """What the classifier found.

    Attributes:
        errors: mean error of each prompt, [K, B]; see `comparable_means` for the prompts that were dropped early.
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
        """Argmin of the error, [B]: always a prompt that was given every trial."""
        return self.errors.argmin(0)


def stratified_timesteps(trials: int, rng: torch.Generator) -> Tensor:
    """One uniform draw from each of `trials` equal parts of 0..999, shuffled, so that any prefix covers the range."""
    parts = (torch.arange(trials) + torch.rand(trials, generator=rng)) * (1000 / trials)
    return parts.long().clamp(max=999)[torch.randperm(trials, generator=rng)]


def pruning_schedule(num_prompts: int, trials: int, pruned: bool) -> list[tuple[int, int]]:
    """Stages of (trials so far, prompts kept for it): halve the prompts whenever the trials have doubled.

    All get an eighth of the trials; of eight prompts two get all of them, which is 0.375 of the passes.

    Source: Li et al., arXiv 2303.16203, algorithm 2; the halving is ours.
    """
    if not pruned or num_prompts <= 2:
        return [(trials, num_prompts)]
    stages, kept, done = [], num_prompts, max(1, trials // 8)
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
        on_pass: told (done, at most in all) after each pass of the U-Net, counted in samples; may raise to stop.

    Returns:
        Errors and scores [K, B].
    """
    rng = torch.Generator().manual_seed(seed)
    timesteps = stratified_timesteps(trials, rng)
    noises = torch.randn(trials, *latents.shape[1:], generator=rng)
    table = torch.full((trials, len(prompts), len(latents)), torch.nan)
    alive = torch.ones(table.shape[1:], dtype=torch.bool)
    begin, done = 0, 0
    for end, kept in pruning_schedule(len(prompts), trials, pruned):
        if kept < len(prompts):
            ranks = table[:begin].mean(0).masked_fill(~alive, torch.inf).argsort(0).argsort(0)
            alive &= ranks < kept
        for trial, chosen, samples in _passes(range(begin, end), alive, prompts):
            done += len(samples)
            t, noise = timesteps[trial].to(latents.device), noises[trial].to(latents)
            with torch.no_grad():
                own = Conditioning.cat([prompts[i] for i in chosen.tolist()])
                error = NoisedBatch(denoiser, latents[samples], t, noise).error(own)
            table[trial, chosen, samples] = error.cpu()
            on_pass(done, table.numel())
        begin = end
    errors = comparable_means(table)
    counts = (~table.isnan()).sum(0)
    return Classification(errors, counts, temperature or calibrated_temperature(errors))


def comparable_means(table: Tensor) -> Tensor:
    """Mean errors that can be compared although some prompts were dropped after few trials.

    The best of the prompts with every trial is the reference; each prompt's error is the reference's mean plus its mean
    excess over the reference on the trials that it had. For a prompt with every trial that is its plain mean.

    Args:
        table: errors [T, K, B], NaN where a prompt was not tried.

    Returns:
        [K, B].
    """
    best = table.mean(0).nan_to_num(nan=torch.inf).argmin(0)
    reference = table.gather(1, best.expand(table.shape[0], 1, -1))
    return reference.mean(0) + (table - reference).nanmean(0)


def _passes(trials: range, alive: Tensor, prompts: Sequence[Conditioning]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Indices of trials, prompts and images, [P] each: what is still in question, several in a pass.

    On a CPU eight prompts of one image together take 0.4 of the time that they take one by one on the embedded base.
    Prompts in a pass are equally long.
    """
    lengths = torch.tensor([prompt.context.shape[1] for prompt in prompts])
    for length in lengths.unique():
        pairs = alive & (lengths == length)[:, None]
        own = pairs.expand(len(trials), *pairs.shape).nonzero()
        for part in own.split(AT_ONCE):
            trial, chosen, samples = part.unbind(1)
            yield trials.start + trial, chosen, samples
