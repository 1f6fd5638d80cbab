"""The diffusion classifier's scores as a loss: which of the prompts explains the image?

e_i is the denoising error of one x_t under prompt i, and p = softmax(-e / tau) over the prompts.
Source: Li et al., arXiv 2303.16203; Jha et al., arXiv 2410.00700, section 3.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Conditioning
from .denoising import NoisedBatch


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


SCORE_VALUES = ("dc_entropy", "dc_accuracy")


def score_values(errors: Tensor, temperature: float) -> dict[str, float]:
    """How well the scores tell the first prompt, c_n, from the others: share of right answers, and their entropy.

    Args:
        errors: denoising errors, [K, B], those of c_n first.
        temperature: tau > 0.

    Returns:
        By `SCORE_VALUES`: the entropy, mean over B in 0..log K nats, and the share in 0..1.
    """
    accuracy = (errors.argmin(0) == 0).float().mean()
    values = float(entropy(dc_log_scores(errors, temperature)).mean()), float(accuracy)
    return dict(zip(SCORE_VALUES, values, strict=True))


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


def calibrated_on(draws: Iterable[tuple[NoisedBatch, list[Conditioning]]]) -> float:
    """The calibrated temperature, mean over draws of (batch, prompts)."""
    with torch.no_grad():
        spreads = [calibrated_temperature(torch.stack([b.error(prompt) for prompt in prompts])) for b, prompts in draws]
    return sum(spreads) / len(spreads)


@dataclass(frozen=True)
class Match:
    """A prediction to be matched in mean squared distance.

    Attributes:
        prompt: index of the prompt under which.
        target: what the prediction should be, [B, C, H, W].
    """

    prompt: int
    target: Tensor


def backward_through_errors(
    batch: NoisedBatch,
    prompts: list[Conditioning],
    weights: Callable[[Tensor], Tensor] | None,
    low_memory: bool,
    matches: Sequence[Match] = (),
    scaled: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[Tensor, list[Tensor]]:
    """Back-propagate a loss of the errors whose derivative d loss / d e is known, plus distances to given predictions.

    Args:
        batch: B noised samples.
        prompts: K prompts.
        weights: errors [K, B] -> d loss / d e, [K, B], without a graph. None: the loss is the distances alone, and
            every prompt has one.
        low_memory: first all errors, without a graph but for the last prompt's, then one prompt at a time; else all
            prompts in one pass. The gradients are equal up to rounding; the first has one graph in memory at a time,
            and needs K - 1 forward passes more, none if there are no weights that wait for the errors.
        matches: predictions to be matched; the mean over the batch of each one's distance is added to the loss.
        scaled: the loss -> what is sent back of it; gradients are as many times larger.

    Returns:
        The errors, [K, B], and the distance of each match, [B], without a graph.
    """
    kept = prompts[-1:] if low_memory else prompts
    first_kept = len(prompts) - len(kept)
    with torch.no_grad():
        before = [] if weights is None else [batch.error(prompt) for prompt in prompts[:first_kept]]
    predictions = batch.predict(kept)
    errors = batch.errors_of(predictions)
    known = torch.stack([*before, *errors.detach()])
    factors = None if weights is None else weights(known)

    def go_back(first: int, predictions: Tensor, errors: Tensor) -> list[Tensor]:
        """From some of the prompts, of which `first` is the first; returns the distances of their matches."""
        part = range(first, first + len(errors))
        own = [match for match in matches if match.prompt in part]
        distances = [batch.distance(predictions[match.prompt - first], match.target) for match in own]
        weighted = [] if factors is None else [(errors * factors[part.start : part.stop]).sum()]
        scaled(torch.stack([*weighted, *(distance.mean() for distance in distances)]).sum()).backward()
        return [distance.detach() for distance in distances]

    distances = go_back(first_kept, predictions, errors)
    for index in reversed(range(first_kept)):
        predictions = batch.predict([prompts[index]])
        errors = batch.errors_of(predictions)
        distances = go_back(index, predictions, errors) + distances
        known = known if before else torch.cat([errors.detach(), known])
    return known, distances
