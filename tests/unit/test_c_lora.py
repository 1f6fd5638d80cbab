"""C-LoRA's penalty by hand."""

import pytest
import torch

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
