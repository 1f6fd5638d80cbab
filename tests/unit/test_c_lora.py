"""C-LoRA's penalty by hand."""

import pytest
import torch
from torch import nn

from tests.toy import ToyBase, ToyUNet, toy_settings
from trainer.adapters.fresh_lora import FreshLoraAdapter
from trainer.methods.c_lora import CLora

LAYERS = ("middle_block.1.attn2.to_k", "middle_block.1.attn2.to_v")


def adapter_with(up, down):
    adapter = FreshLoraAdapter(ToyBase(ToyUNet().requires_grad_(False)).unet, 1, 2.0, torch.Generator())
    for layer in LAYERS:
        adapter.parameters[f"{layer}.lora_up"].data = torch.tensor(up)
        adapter.parameters[f"{layer}.lora_down"].data = torch.tensor(down)
    return adapter


def test_penalty_by_hand():
    past = adapter_with([[1.0], [0.0]], [[1.0, 0.0, 3.0]])  # 2 * [[1, 0, 3], [0, 0, 0]]
    adapter = adapter_with([[0.5], [4.0]], [[1.0, 5.0, -1.0]])  # 2 * [[0.5, 2.5, -0.5], [4, 20, -4]]
    adapter.go_on_from(past.files())
    # Only where the past is not zero: (2 * 1)^2 and (6 * -1)^2, in both layers.
    penalty = CLora(toy_settings(penalty_weight=0.1)).penalty(adapter)
    assert penalty.item() == pytest.approx(0.1 * 2 * (4 + 36))
    penalty.backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters.values())


def test_none_at_the_first_task_and_zero_without_an_update():
    adapter = adapter_with([[0.5], [4.0]], [[1.0, 5.0, -1.0]])
    method = CLora(toy_settings(penalty_weight=2.0))
    assert method.penalty(adapter) is None and method.state_dict() == {}
    empty = adapter_with([[0.0], [0.0]], [[1.0, 1.0, 1.0]])
    empty.go_on_from(adapter.files())
    assert method.penalty(empty).item() == 0


class In8Bits(nn.Linear):
    """A host's layer: its weight is cast for every call."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype))


def test_on_weights_of_8_bits_the_past_is_kept_beside_them():
    """Folded in, an update of a thousandth would be rounded away."""
    base = ToyBase(ToyUNet().requires_grad_(False))
    attention = base.unet.middle_block[1].attn2
    for name in ("to_k", "to_v"):
        layer, weight = In8Bits(3, 2, bias=False), getattr(attention, name).weight
        layer.weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)
        setattr(attention, name, layer)
    originals = [attention.to_k.weight, attention.to_v.weight]
    x, words = torch.ones(1, 1, 1, 2), torch.ones(1, 4, 3)
    before = base.unet(x, torch.tensor([0]), words)
    adapter = FreshLoraAdapter(base.unet, 1, 2.0, torch.Generator())
    adapter.go_on_from(adapter_with([[0.001], [0.0]], [[0.5, 0.0, 0.0]]).files())
    with torch.no_grad():
        change = base.unet(x, torch.tensor([0]), words) - before
    # 2 * 0.001 * 0.5 of every word, in the key that is multiplied by x = 1, and in the value.
    torch.testing.assert_close(change, torch.tensor([[[[0.002, 0.0]]]]), rtol=1e-3, atol=1e-6)
    layers = (attention.to_k, attention.to_v)
    assert all(layer.base_layer.base.weight is own for layer, own in zip(layers, originals, strict=True))
    assert {id(p) for p in base.unet.parameters() if p.requires_grad} == {id(p) for p in adapter.parameters.values()}
