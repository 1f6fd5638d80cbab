"""What every file of adapters/ must keep to."""

import pytest
import torch

from tests.toy import ToyBase, ToyUNet
from trainer.adapters import ADAPTERS
from trainer.adapters.adapter import Adapter
from trainer.adapters.kohya import stems_from_kohya
from trainer.denoiser import Conditioning
from trainer.losses.fisher import per_sample_gradients

UNET = ToyUNet().requires_grad_(False)
X_T, T = torch.tensor([[[[0.5, -1.0]]], [[[1.5, 0.25]]]]), torch.tensor([10, 900])
CONTEXT = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
each_adapter = pytest.mark.parametrize("name", ADAPTERS)


def adapter_on(base, name, seed=0, rank=2, alpha=3.0):
    return ADAPTERS[name](base.unet, rank, alpha, torch.Generator().manual_seed(seed))


def randomized(name, seed=1):
    """An adapter of random numbers on its base."""
    base = ToyBase(UNET)
    adapter = adapter_on(base, name)
    draws = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters.values():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=draws)
    return base, adapter


def predict(base):
    with torch.no_grad():
        return base.predict(X_T, T, Conditioning(CONTEXT))


@each_adapter
def test_it_is_offered_under_its_name_and_explains_itself(name):
    assert issubclass(ADAPTERS[name], Adapter) and name.isidentifier() and ADAPTERS[name].__doc__


@each_adapter
def test_it_starts_as_the_base(name):
    base = ToyBase(UNET)
    before = predict(base)
    assert adapter_on(base, name).norm() == 0
    assert torch.equal(predict(base), before)


@each_adapter
def test_only_its_parameters_are_trainable_and_the_original_is_as_it_was(name):
    before = {key: value.clone() for key, value in UNET.state_dict().items()}
    base, adapter = randomized(name)
    trainable = {id(p) for p in base.unet.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters.values()}
    assert all(value.dtype == torch.float32 for value in adapter.parameters.values())
    assert all(torch.equal(value, before[key]) for key, value in UNET.state_dict().items())


@each_adapter
def test_predictions_are_those_of_the_base_with_its_updates_added(name):
    base, adapter = randomized(name)
    merged = ToyUNet().requires_grad_(False)
    for layer, delta in adapter.deltas().items():
        merged.get_parameter(f"{layer}.weight").add_(delta.detach())
    torch.testing.assert_close(predict(base), predict(ToyBase(merged)))
    squares = sum(float(delta.detach().square().sum()) for delta in adapter.deltas().values())
    assert adapter.norm() == pytest.approx(squares**0.5, rel=1e-5)


@each_adapter
def test_its_file_says_what_it_adds(name):
    """As ComfyUI reads it: alpha / rank * up down, or the difference itself."""
    _, adapter = randomized(name)
    lora = adapter.files()["lora"]
    for layer, delta in adapter.deltas().items():
        stem = f"lora_unet_mid_block_attentions_0_{layer.removeprefix('middle_block.1.').replace('.', '_')}"
        found = lora[f"{stem}.diff"] if f"{stem}.diff" in lora else stems_from_kohya(lora)[stem].delta
        torch.testing.assert_close(found, delta.detach())


@each_adapter
def test_it_goes_on_from_its_files(name):
    base, adapter = randomized(name)
    again = ToyBase(UNET)
    other = adapter_on(again, name, seed=5)
    other.go_on_from({stem: {k: v.clone() for k, v in tensors.items()} for stem, tensors in adapter.files().items()})
    torch.testing.assert_close(predict(again), predict(base))
    if not adapter.past and not other.past:
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in adapter.state_dict().items())


@each_adapter
def test_per_sample_gradients_are_those_of_one_sample_at_a_time(name):
    base, adapter = randomized(name)
    theta = adapter.parameters
    if not theta:
        return  # nothing to differentiate by
    with per_sample_gradients(adapter.layers, 2) as gradients:
        base.predict(X_T, T, Conditioning(CONTEXT)).square().sum().backward()
    for sample in range(2):
        loss = base.predict(X_T[sample, None], T[sample, None], Conditioning(CONTEXT[sample, None])).square().sum()
        expected = torch.autograd.grad(loss, list(theta.values()))
        for key, grad in zip(theta, expected, strict=True):
            torch.testing.assert_close(gradients[key][sample], grad)


@each_adapter
def test_gradients_of_the_update_are_those_of_the_weight(name):
    """Hooked around the whole layer, they are the gradient by the weight itself."""
    base, adapter = randomized(name)
    layers = {layer: base.unet.get_submodule(layer) for layer in adapter.deltas()}
    with per_sample_gradients(layers, 2) as gradients:
        context = Conditioning(CONTEXT.clone().requires_grad_(True))
        base.predict(X_T, T, context).square().sum().backward()
    merged = ToyUNet()
    for layer, delta in adapter.deltas().items():
        merged.get_parameter(f"{layer}.weight").data.add_(delta.detach())
    merged(X_T, T, CONTEXT).square().sum().backward()
    for layer in layers:
        torch.testing.assert_close(gradients[layer].sum(0), merged.get_parameter(f"{layer}.weight").grad)


@each_adapter
def test_it_can_be_another_for_a_while(name):
    base, adapter = randomized(name, seed=1)
    other, teacher = randomized(name, seed=2)
    before, kept = predict(base), adapter.state_dict()
    with adapter.carrying(teacher.state_dict()):
        assert torch.equal(predict(base), predict(other))
    assert torch.equal(predict(base), before)
    assert all(torch.equal(value, kept[key]) for key, value in adapter.state_dict().items())


@each_adapter
def test_start_depends_on_its_generator_alone(name):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = adapter_on(ToyBase(UNET), name).state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    torch.manual_seed(2)
    second = adapter_on(ToyBase(UNET), name).state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_vera_trains_two_vectors_a_layer():
    _, adapter = randomized("vera")
    assert {key.rpartition(".")[2]: tuple(value.shape) for key, value in adapter.parameters.items()} == {
        "vera_d": (2,),
        "vera_b": (2,),
    }


def test_a_difference_of_another_model_is_refused():
    adapter = adapter_on(ToyBase(UNET), "full")
    files = adapter.files()
    key = next(iter(files["lora"]))
    with pytest.raises(Exception, match="should hold a difference for each"):
        adapter.go_on_from({"lora": {k: v for k, v in files["lora"].items() if k != key}})


def test_a_fresh_lora_sums_the_past_up():
    """Two tasks by hand: the file after the second is the sum of both updates."""
    _, first = randomized("fresh_lora", seed=1)
    _, second = randomized("fresh_lora", seed=2)
    own = {layer: delta.detach().clone() for layer, delta in second.deltas().items()}
    second.go_on_from(first.files())
    for layer, delta in first.deltas().items():
        torch.testing.assert_close(second.past[layer], delta.detach())
        stem = f"lora_unet_mid_block_attentions_0_{layer.removeprefix('middle_block.1.').replace('.', '_')}"
        torch.testing.assert_close(second.files()["lora"][f"{stem}.diff"], delta.detach() + own[layer])
