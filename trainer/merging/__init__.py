"""Several LoRAs become one: `merge()`, and one file for each method."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..adapters.factors import Lora, LoraFactors
from ..errors import ContinualLoraError
from .cat import cat
from .dare import dare_linear, dare_ties
from .linear import linear
from .svd import truncate
from .ties import ties

# On `down` and `up` separately, the others on the update itself.
_FACTOR_METHODS = ("linear", "ties", "dare_linear", "dare_ties")
MERGE_METHODS = (*_FACTOR_METHODS, "svd", "cat")

# One layer of one LoRA and its weight.
_Part = tuple[LoraFactors, float]


@torch.no_grad()
def merge(
    method: str,
    loras: list[Lora],
    weights: list[float],
    *,
    rank: int = 0,
    density: float = 0.5,
    rng: torch.Generator | None = None,
) -> Lora:
    """One LoRA in the place of several: `delta ~ sum_k w_k delta_k`, as near as the method allows.

    A layer that only some of the LoRAs have is zero in the others. Computed in float32; each layer's `alpha` is its
    rank, the scales are folded into the factors.

    Source: peft's `add_weighted_adapter`, which the factor methods match to rounding; see each method's file.

    Args:
        method: one of `MERGE_METHODS`. `cat` is exact, with the sum of the ranks. `svd` is the nearest of rank `rank`.
            `linear`, `ties`, `dare_linear` and `dare_ties` keep the rank, which must be the same in all.
        loras: K LoRAs of one base model.
        weights: K numbers; negative ones subtract.
        rank: of the result of `svd`; 0 is the largest among the inputs.
        density: share of the values that stay, in (0, 1], for `ties`, `dare_linear`, `dare_ties`.
        rng: draws what `dare_linear` and `dare_ties` drop.

    Raises:
        ContinualLoraError: The LoRAs do not fit together, or a setting is out of its range.
    """
    _check_settings(method, rank, density, rng)
    _check_inputs(loras, weights)
    layers = {
        layer: [(lora[layer], weight) for lora, weight in zip(loras, weights, strict=True) if layer in lora]
        for layer in sorted(set().union(*loras))  # sorted: the same draws whatever the order in the files
    }
    for layer, parts in layers.items():
        _check_shapes(layer, parts, same_rank=method in _FACTOR_METHODS)
    if method in ("cat", "svd"):
        rank = _result_rank(layers, rank) if method == "svd" else 0
        return {layer: _merge_updates(parts, rank) for layer, parts in layers.items()}
    combine = _combination(method, density, rng)
    return {layer: _merge_factors(parts, combine) for layer, parts in layers.items()}


def _combination(method: str, density: float, rng: torch.Generator | None) -> Callable[[Tensor, Tensor], Tensor]:
    """The method as a function of tensors [K, ...] and weights [K]."""
    if method == "linear":
        return linear
    if method == "ties":
        return partial(ties, density=density)
    assert rng is not None
    return partial(dare_linear if method == "dare_linear" else dare_ties, density=density, rng=rng)


def _merge_factors(parts: list[_Part], combine: Callable[[Tensor, Tensor], Tensor]) -> LoraFactors:
    """`down` with `down`, `up` with `up`."""
    down_weights, up_weights = _split_scales(parts)
    down = combine(torch.stack([factors.down.float() for factors, _ in parts]), down_weights)
    up = combine(torch.stack([factors.up.float() for factors, _ in parts]), up_weights)
    return LoraFactors(down, up, alpha=float(len(down)))


def _merge_updates(parts: list[_Part], rank: int) -> LoraFactors:
    """The exact sum, then the nearest of `rank`; 0 leaves it exact."""
    down, up = cat(
        [factors.down.float() for factors, _ in parts],
        [factors.up.float() for factors, _ in parts],
        *_split_scales(parts),
    )
    if rank:
        down, up = truncate(down, up, rank)
    return LoraFactors(down, up, alpha=float(len(down)))


def _split_scales(parts: list[_Part]) -> tuple[Tensor, Tensor]:
    """`s_k = w_k alpha_k / r_k` as [K] for `down`, `sign(s) sqrt|s|`, and [K] for `up`, `sqrt|s|`: the sign once."""
    scales = [weight * factors.alpha / factors.rank for factors, weight in parts]
    roots = [math.sqrt(abs(scale)) for scale in scales]
    signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
    device = parts[0][0].down.device
    return torch.tensor(signed, device=device), torch.tensor(roots, device=device)


def _result_rank(layers: dict[str, list[_Part]], rank: int) -> int:
    """The rank `svd` is to give; the sum of the ranks is the most that there can be."""
    limit = max((sum(factors.rank for factors, _ in parts) for parts in layers.values()), default=0)
    if rank > limit:
        raise ContinualLoraError(
            f"The merged LoRA can have rank {limit} at most, the sum of its inputs' ranks.",
            f'"rank" is {rank}.',
            f'Set "rank" to {limit} or less, or to 0 for the largest rank among the inputs.',
        )
    return rank or max((factors.rank for parts in layers.values() for factors, _ in parts), default=0)


def _check_settings(method: str, rank: int, density: float, rng: torch.Generator | None) -> None:
    """Each setting in its range."""
    if method not in MERGE_METHODS:
        known = ", ".join(f'"{name}"' for name in MERGE_METHODS)
        raise ContinualLoraError(
            f"A merge method is one of {known}.", f'"{method}" is not.', 'Choose one of them as "method".'
        )
    if not 0 < density <= 1:
        raise ContinualLoraError(
            '"density" is a share above 0 and up to 1.', f"It is {density}.", "Set it to 0.5, say; 1 drops nothing."
        )
    if rank < 0:
        raise ContinualLoraError(
            '"rank" is 0 or more.', f"It is {rank}.", "Set it to 0 for the largest rank among the inputs."
        )
    if rng is None and method.startswith("dare"):
        raise ContinualLoraError(
            f'"{method}" drops values at random and needs a random generator.', "None was given.", "Pass `rng`."
        )


def _check_inputs(loras: list[Lora], weights: list[float]) -> None:
    """At least one LoRA, and a weight for each."""
    if not loras:
        raise ContinualLoraError("A merge needs at least one LoRA.", "None was given.", "Add a LoRA to the merge.")
    if len(loras) != len(weights):
        raise ContinualLoraError(
            "Each LoRA of a merge needs one weight.",
            f"There are {len(loras)} LoRAs and {len(weights)} weights.",
            f"Give {len(loras)} weights.",
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise ContinualLoraError(
            "The strengths of a merge should be finite numbers.",
            f"They are {', '.join(map(str, weights))}.",
            "Correct them.",
        )
    for lora in loras:
        for layer, factors in lora.items():
            if not (factors.down.isfinite().all() and factors.up.isfinite().all() and math.isfinite(factors.alpha)):
                raise ContinualLoraError(
                    "A LoRA to merge should hold numbers.",
                    f"In layer `{layer}` of one are values that are none (NaN or infinite).",
                    "Leave it out; its training went wrong.",
                )


def _check_shapes(layer: str, parts: list[_Part], same_rank: bool) -> None:
    """The LoRAs must fit one layer of one base model."""
    shapes = [(factors.up.shape[0], factors.down.shape[1]) for factors, _ in parts]
    if len(set(shapes)) > 1:
        raise ContinualLoraError(
            "LoRAs to merge must be made for one base model.",
            f"Layer `{layer}` has the shapes {', '.join(f'{rows} x {columns}' for rows, columns in shapes)} in them.",
            "Leave out those of another base model.",
        )
    ranks = [factors.rank for factors, _ in parts]
    if same_rank and len(set(ranks)) > 1:
        raise ContinualLoraError(
            f"{', '.join(_FACTOR_METHODS)} need LoRAs of one rank.",
            f"Layer `{layer}` has the ranks {', '.join(map(str, ranks))} in them.",
            'Set "method" to "svd" or "cat".',
        )
