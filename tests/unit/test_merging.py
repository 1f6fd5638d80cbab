"""Merging against peft's `add_weighted_adapter`, hand values and what each method promises."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from trainer.adapters.factors import LoraFactors
from trainer.errors import ContinualLoraError
from trainer.merging import MERGE_METHODS, merge
from trainer.merging.dare import drop_and_rescale
from trainer.merging.svd import truncate
from trainer.merging.ties import disjoint_mean, trim

# Layer name -> (in_features, out_features).
SHAPES = {"first": (10, 7), "second": (6, 12)}
WEIGHTS = ([0.7, 0.3, 1.1], [1.0, -0.6, 0.4], [-0.5, -1.0, -2.0], [1.0, 0.0, 0.5])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_lora(seed, rank=4, alpha=4.0, shapes=SHAPES):
    draws = rng(seed)
    return {
        layer: LoraFactors(
            torch.randn(rank, columns, generator=draws), torch.randn(rows, rank, generator=draws), alpha=alpha
        )
        for layer, (columns, rows) in shapes.items()
    }


def three_loras(ranks=(4, 4, 4), alphas=(4.0, 8.0, 1.0)):
    return [random_lora(seed, rank, alpha) for seed, rank, alpha in zip(itertools.count(), ranks, alphas, strict=False)]


def layer_of(down, up, alpha=None):
    down, up = torch.tensor(down), torch.tensor(up)
    return {"layer": LoraFactors(down, up, alpha=float(len(down)) if alpha is None else alpha)}


def peft_merge(loras, weights, method, **settings):
    """The same merge by peft: an adapter for each LoRA on a model of linear layers."""
    model = nn.ModuleDict({layer: nn.Linear(*shape, bias=False) for layer, shape in SHAPES.items()})
    names = [f"lora_{k}" for k in range(len(loras))]
    wrapped = None
    for name, lora in zip(names, loras, strict=True):
        factors = next(iter(lora.values()))
        config = LoraConfig(r=factors.rank, lora_alpha=factors.alpha, target_modules=sorted(lora), lora_dropout=0.0)
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
        for layer, layer_factors in lora.items():
            target = wrapped.base_model.model[layer]
            target.lora_A[name].weight.data.copy_(layer_factors.down)
            target.lora_B[name].weight.data.copy_(layer_factors.up)
    wrapped.add_weighted_adapter(names, weights, "merged", combination_type=method, **settings)
    return {
        layer: (target.lora_A["merged"].weight.data, target.lora_B["merged"].weight.data, target.scaling["merged"])
        for layer in SHAPES
        if "merged" in (target := wrapped.base_model.model[layer]).lora_A
    }


def assert_same_factors(merged, reference):
    assert merged.keys() == reference.keys()
    for layer, (down, up, scaling) in reference.items():
        assert scaling == merged[layer].alpha / merged[layer].rank == 1
        torch.testing.assert_close(merged[layer].down, down)
        torch.testing.assert_close(merged[layer].up, up)


def assert_same_deltas(merged, reference):
    assert merged.keys() == reference.keys()
    for layer, (down, up, scaling) in reference.items():
        torch.testing.assert_close(merged[layer].delta, scaling * (up @ down), rtol=1e-4, atol=1e-4)


def weighted_sum(loras, weights, layer):
    return sum(weight * lora[layer].delta for lora, weight in zip(loras, weights, strict=True) if layer in lora)


# Against peft


@pytest.mark.parametrize("weights", WEIGHTS)
def test_linear_is_pefts(weights):
    loras = three_loras()
    assert_same_factors(merge("linear", loras, weights), peft_merge(loras, weights, "linear"))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ties_is_pefts(weights, density):
    loras = three_loras()
    merged = merge("ties", loras, weights, density=density)
    assert_same_factors(merged, peft_merge(loras, weights, "ties", density=density))


@pytest.mark.filterwarnings("ignore:The density 1")
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_nothing_dropped_is_pefts(method, weights):
    loras = three_loras()
    merged = merge(method, loras, weights, density=1.0, rng=rng())
    assert_same_factors(merged, peft_merge(loras, weights, method, density=1.0))


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_svd_is_pefts(weights, rank):
    loras = three_loras(ranks=(2, 4, 3))
    merged = merge("svd", loras, weights, rank=rank)
    assert {factors.rank for factors in merged.values()} == {rank or 4}
    assert_same_deltas(merged, peft_merge(loras, weights, "svd", svd_rank=rank or None))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_cat_is_pefts(weights):
    loras = three_loras(ranks=(2, 4, 3))
    assert_same_deltas(merge("cat", loras, weights), peft_merge(loras, weights, "cat"))


@pytest.mark.parametrize("method", ["linear", "ties", "cat", "svd"])
def test_a_layer_only_some_have_is_pefts(method):
    loras, weights = three_loras(), [1.0, -0.6, 0.4]
    del loras[1]["second"], loras[0]["first"]
    settings = {"density": 0.5} if method == "ties" else {}
    assert_same_deltas(merge(method, loras, weights, **settings), peft_merge(loras, weights, method, **settings))


# Hand values


def test_linear_by_hand():
    # 4 * (alpha / rank = 2 / 2) in the first, 3 * 6 / 2 = 9 in the second: roots 2 and 3.
    one = layer_of([[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0]])
    two = layer_of([[0.0, 1.0], [1.0, 1.0]], [[3.0, -1.0]], alpha=6.0)
    merged = merge("linear", [one, two], [4.0, -3.0])["layer"]
    assert merged.down.tolist() == [[2.0, -3.0], [-3.0, -1.0]]
    assert merged.up.tolist() == [[11.0, 1.0]]
    assert merged.alpha == 2.0


def test_a_negative_weight_turns_the_update_around():
    lora = random_lora(0)
    for method in MERGE_METHODS:
        merged = merge(method, [lora], [-2.0], density=1.0, rng=rng())
        for layer, factors in lora.items():
            torch.testing.assert_close(merged[layer].delta, -2 * factors.delta, rtol=1e-4, atol=1e-4)


def test_trim_keeps_the_largest_by_magnitude_of_each():
    tensors = torch.tensor([[[1.0, -4.0], [3.0, 0.5]], [[0.125, 0.25], [-0.5, 0.375]]])
    assert trim(tensors, 0.5).tolist() == [[[0.0, -4.0], [3.0, 0.0]], [[0.0, 0.0], [-0.5, 0.375]]]
    assert trim(tensors, 0.75).count_nonzero(dim=(1, 2)).tolist() == [3, 3]
    assert torch.equal(trim(tensors, 1.0), tensors)


def test_disjoint_mean_by_hand():
    tensors = torch.tensor([[3.0, -1.0, 0.0, 2.0], [-1.0, -3.0, 0.0, -2.0], [1.0, 6.0, -5.0, 0.0]])
    # Totals 3, 2, -5, 0 elect +, +, -, + (0 counts as +). Agreeing: {1, 3}, {3}, {3}, {1}.
    weights = torch.tensor([1.0, 10.0, -2.0])
    assert disjoint_mean(tensors, weights).tolist() == [0.5, -12.0, 10.0, 2.0]


def test_a_zero_does_not_count_in_the_mean():
    assert disjoint_mean(torch.tensor([[4.0], [0.0]]), torch.ones(2)).tolist() == [4.0]
    assert disjoint_mean(torch.zeros(2, 1), torch.ones(2)).tolist() == [0.0]


# What the methods promise


@pytest.mark.parametrize("weights", WEIGHTS)
def test_cat_is_the_exact_sum(weights):
    loras = three_loras(ranks=(2, 4, 3))
    merged = merge("cat", loras, weights)
    for layer in SHAPES:
        assert merged[layer].rank == merged[layer].alpha == 9
        torch.testing.assert_close(merged[layer].delta, weighted_sum(loras, weights, layer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_svd_loses_only_the_smallest_singular_values(rank):
    """Eckart-Young: no update of that rank is nearer than the root of the sum of the squares left out."""
    loras, weights = three_loras(), [1.0, -0.6, 0.4]
    merged = merge("svd", loras, weights, rank=rank)
    for layer in SHAPES:
        wanted = weighted_sum(loras, weights, layer)
        best = torch.linalg.svdvals(wanted)[rank:].square().sum().sqrt()
        torch.testing.assert_close((wanted - merged[layer].delta).norm(), best, rtol=1e-4, atol=1e-4)


def test_svd_at_the_full_rank_is_exact_and_keeps_the_rank_of_a_layer_with_less():
    loras, weights = three_loras(), [1.0, -0.6, 0.4]
    del loras[1]["second"], loras[2]["second"]
    merged = merge("svd", loras, weights, rank=12)
    for layer in SHAPES:
        assert merged[layer].rank == merged[layer].alpha == 12
        torch.testing.assert_close(merged[layer].delta, weighted_sum(loras, weights, layer), rtol=1e-4, atol=1e-4)


def test_truncate_shares_the_singular_values_between_the_factors():
    down, up = truncate(torch.tensor([[0.0, 4.0]]), torch.tensor([[3.0], [0.0], [0.0]]), rank=1)
    torch.testing.assert_close(down.abs(), torch.tensor([[0.0, 12**0.5]]))
    torch.testing.assert_close(up.abs(), torch.tensor([[12**0.5], [0.0], [0.0]]))


def test_dropping_keeps_the_expected_value():
    """Mean over 4000 draws of X m / d: standard error |X| sqrt((1 - d) / (d n)), 5 of them allowed."""
    values = torch.tensor([1.0, -3.0, 0.2])
    draws = drop_and_rescale(values.expand(4000, 3), 0.3, rng())
    error = (draws.mean(0) - values).abs()
    assert (error < 5 * values.abs() * (0.7 / (0.3 * 4000)) ** 0.5).all()
    assert ((draws == 0) | torch.isclose(draws, values / 0.3)).all()


@pytest.mark.parametrize("density", [0.1, 0.5, 0.8])
def test_dropping_keeps_the_share(density):
    kept = drop_and_rescale(torch.ones(20_000), density, rng()).count_nonzero() / 20_000
    assert abs(float(kept) - density) < 5 * (density * (1 - density) / 20_000) ** 0.5


def test_the_mean_of_dare_linear_is_linear():
    loras, weights = three_loras(), [1.0, -0.6, 0.4]
    draws = rng()
    merged = [merge("dare_linear", loras, weights, density=0.5, rng=draws) for _ in range(800)]
    exact = merge("linear", loras, weights)
    for layer in SHAPES:
        error = torch.stack([lora[layer].down for lora in merged]).mean(0) - exact[layer].down
        assert error.abs().max() < 0.4 < exact[layer].down.abs().max()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_depends_on_its_generator_only(method):
    loras, weights = three_loras(), [1.0, -0.6, 0.4]
    state = torch.get_rng_state()
    one = merge(method, loras, weights, rng=rng(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    reordered = [dict(reversed(lora.items())) for lora in loras]
    again, other = merge(method, reordered, weights, rng=rng(1)), merge(method, loras, weights, rng=rng(2))
    for layer in SHAPES:
        assert torch.equal(one[layer].down, again[layer].down)
        assert torch.equal(one[layer].up, again[layer].up)
        assert not torch.equal(one[layer].down, other[layer].down)


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_half_precision_is_merged_in_float32(method):
    """65504 is the largest float16: the sum of two of them must not be infinite, and the inputs must stay."""
    half = {"layer": LoraFactors(torch.full((1, 2), 60000.0).half(), torch.ones(2, 1).half(), alpha=1.0)}
    merged = merge(method, [half, half], [1.0, 1.0], density=1.0, rng=rng())["layer"]
    assert merged.down.dtype == merged.up.dtype == torch.float32
    assert merged.delta.isfinite().all() and merged.delta.min() >= 60000
    assert half["layer"].down.dtype == torch.float16


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_parameters_in_training_give_plain_tensors_that_share_nothing(method):
    down, up = nn.Parameter(torch.ones(1, 2)), nn.Parameter(torch.ones(2, 1))
    merged = merge(method, [{"layer": LoraFactors(down, up, alpha=1.0)}], [1.0], density=1.0, rng=rng())["layer"]
    assert not merged.down.requires_grad and not merged.up.requires_grad
    merged.down.zero_()
    merged.up.zero_()
    assert down.detach().sum() == up.detach().sum() == 2


def test_loras_without_layers_give_one_without_layers():
    assert all(merge(method, [{}], [1.0], rng=rng()) == {} for method in MERGE_METHODS)


# Errors: three facts each


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda a, b: merge("magic", [a], [1.0]), ("linear", '"magic" is not.', "Choose")),
        (lambda a, b: merge("cat", [], []), ("at least one", "None", "Add a LoRA")),
        (lambda a, b: merge("cat", [a, a], [1.0]), ("one weight", "2 LoRAs and 1 weights", "Give 2")),
        (lambda a, b: merge("ties", [a], [1.0], density=0.0), ('"density"', "It is 0.0.", "Set it")),
        (lambda a, b: merge("ties", [a], [1.0], density=1.5), ('"density"', "It is 1.5.", "Set it")),
        (lambda a, b: merge("svd", [a], [1.0], rank=-1), ('"rank" is 0 or more', "It is -1.", "Set it to 0")),
        (lambda a, b: merge("svd", [a, b], [1.0, 1.0], rank=7), ("rank 6 at most", '"rank" is 7.', "6 or less")),
        (lambda a, b: merge("linear", [a, b], [1.0, 1.0]), ("one rank", "the ranks 4, 2", '"svd" or "cat"')),
        (lambda a, b: merge("dare_ties", [a], [1.0]), ("generator", "None was given.", "`rng`")),
    ],
)
def test_an_error_says_what_was_expected_what_came_and_what_to_do(call, facts):
    with pytest.raises(ContinualLoraError) as caught:
        call(random_lora(0, rank=4), random_lora(1, rank=2))
    positions = [str(caught.value).find(fact) for fact in facts]
    assert -1 not in positions and positions == sorted(positions), str(caught.value)


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_loras_of_different_models_are_refused(method):
    other = random_lora(1, shapes={"first": (10, 8)})
    with pytest.raises(ContinualLoraError, match="`first` has the shapes 7 x 10, 8 x 10 in them"):
        merge(method, [random_lora(0), other], [1.0, 1.0], rng=rng())
