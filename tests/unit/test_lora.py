"""The live adapter: where it sits, how it starts, what it adds."""

import math

import pytest
import torch
from torch import nn

from tests.toy import VALUES, ToyBase
from trainer.adapters.factors import LoraFactors
from trainer.adapters.layers import cross_attention_layers
from trainer.adapters.lora import LoraAdapter
from trainer.denoiser import Conditioning
from trainer.errors import ContinualLoraError


def adapter_on(base, rank=2, alpha=2.0, seed=0):
    return LoraAdapter(base.unet, rank, alpha, torch.Generator().manual_seed(seed))


def test_only_keys_and_values_of_the_cross_attention(tiny):
    layers = cross_attention_layers(tiny.unet)
    assert len(layers) == 14 and all(".attn2.to_" in name and name[-1] in "kv" for name in layers)


def test_a_model_without_cross_attention_says_what_is_supported():
    with pytest.raises(ContinualLoraError) as caught:
        cross_attention_layers(nn.Sequential(nn.Linear(2, 2)))
    text = str(caught.value)
    assert "`attn2.to_k`" in text and "`Sequential`" in text and "Stable Diffusion 1.x" in text


def test_delta_by_hand():
    factors = LoraFactors(
        torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[3.0, 1.0], [0.0, -1.0]]), 1.0
    )
    assert factors.rank == 2 and factors.delta.tolist() == [[1.5, 3.0, 0.5], [0.0, 0.0, -0.5]]


def test_norm_is_that_of_the_whole_updates(tiny):
    adapter, rng = adapter_on(tiny, rank=3, alpha=6.0), torch.Generator().manual_seed(4)
    for parameter in adapter.parameters.values():
        parameter.data.normal_(generator=rng)
    whole = torch.cat([delta.detach().flatten() for delta in adapter.deltas().values()])
    assert adapter.norm() == pytest.approx(float(whole.norm()), rel=1e-5)


def test_it_starts_as_the_base_and_inside_its_bounds(tiny):
    x, t, c = torch.randn(1, 8, 8, 8), torch.tensor([500]), Conditioning(torch.randn(1, 24, 128))
    with torch.no_grad():
        before = tiny.predict(x, t, c)
        adapter = adapter_on(tiny)
        assert torch.equal(tiny.predict(x, t, c), before)
    for name, value in adapter.parameters.items():
        bound = value.shape[1] ** -0.5
        peak = value.abs().max().item()
        assert peak == 0 if name.endswith("lora_up") else 0.9 * bound < peak <= bound


def test_predictions_carry_alpha_over_rank_times_up_down():
    base = ToyBase()
    adapter = adapter_on(base, alpha=3.0)
    down, up = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]]), torch.tensor([[1.0, -2.0], [0.0, 1.0]])
    adapter.parameters["middle_block.1.attn2.to_v.lora_down"].data = down
    adapter.parameters["middle_block.1.attn2.to_v.lora_up"].data = up
    word = torch.tensor([0.5, -1.0, 2.0])
    prediction = base.predict(torch.zeros(1, 1, 1, 2), torch.tensor([0]), Conditioning(word[None, None]))
    torch.testing.assert_close(prediction.flatten(), (torch.tensor(VALUES) + 1.5 * up @ down) @ word)
    assert adapter.norm() == pytest.approx((1.5 * up @ down).norm().item(), rel=1e-5)


def test_norm_is_that_of_all_updates_together(tiny):
    adapter = adapter_on(tiny)
    for parameter in adapter.parameters.values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    expected = math.sqrt(sum(factors.delta.square().sum().item() for factors in adapter.factors().values()))
    assert adapter.norm() == pytest.approx(expected, rel=1e-4)


def test_start_depends_on_its_generator_alone():
    torch.manual_seed(1)
    first = adapter_on(ToyBase()).state_dict()
    torch.manual_seed(2)
    second, other = adapter_on(ToyBase()).state_dict(), adapter_on(ToyBase(), seed=1).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_it_leaves_the_global_generator_where_it_was():
    base = ToyBase()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    adapter_on(base)
    assert torch.equal(torch.rand(3), expected)


def test_only_the_adapter_is_trainable_and_the_original_has_none(tiny):
    adapter = adapter_on(tiny)
    trainable = {id(p) for p in tiny.unet.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in adapter.parameters.values()} and len(trainable) == 28
    assert all(value.dtype == torch.float32 for value in adapter.parameters.values())
    assert not any("lora" in name for name, _ in tiny.weights.unet.named_modules())


def test_states_are_copies_and_come_back():
    adapter, other = adapter_on(ToyBase()), adapter_on(ToyBase(), seed=1)
    state = adapter.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    for parameter in adapter.parameters.values():
        parameter.data += 1
    assert all(torch.equal(value, kept[name]) for name, value in state.items())
    other.load_state_dict(state)
    assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())


def test_another_rank_is_an_error_of_three_facts():
    with pytest.raises(ContinualLoraError) as caught:
        adapter_on(ToyBase(), rank=2).load_state_dict(adapter_on(ToyBase(), rank=3).state_dict())
    text = str(caught.value)
    assert "of shape [2, 3]" in text and "of shape [3, 3]" in text and 'Set "rank"' in text
