"""Gradient checkpointing: the same numbers, with less kept for the way back."""

import gc
import weakref

import pytest
import torch
from torch import nn

from tests.toy import toy_concept
from trainer.adapters.lora import LoraAdapter
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.losses.fisher import per_sample_gradients
from trainer.planning import task_record
from trainer.settings import TrainSettings
from trainer.training.checkpointing import checkpoint_blocks


def pass_of(folder, checkpointed):
    """Prediction, per-sample gradients and gradients of one pass, and the bytes that autograd kept for it."""
    base = TinyBase(folder)
    if checkpointed:
        assert checkpoint_blocks(base.unet) == 15  # eight residual blocks, seven transformers
    adapter = LoraAdapter(base.unet, 2, 2.0, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters.values():
        parameter.data.normal_(generator=rng)
    x, context = torch.randn(2, 8, 8, 8, generator=rng), torch.randn(2, 5, 128, generator=rng)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with per_sample_gradients(adapter.layers, 2) as samples:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction = base.unet(x, torch.tensor([10, 700]), context)
            held = sum(kept.values())
        prediction.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in adapter.parameters.items()}
    return prediction, dict(samples), gradients, held


def test_the_numbers_are_the_same_and_less_is_kept(random_tiny_folder):
    plain, checkpointed = (pass_of(random_tiny_folder, on) for on in (False, True))
    assert torch.equal(plain[0], checkpointed[0])
    for mine, other in zip(plain[1:3], checkpointed[1:3], strict=True):
        assert mine.keys() == other.keys() and mine
        for name, value in mine.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-7)
    assert checkpointed[3] < 0.5 * plain[3]


def test_a_view_is_gone_with_its_last_name(random_tiny_folder):
    base = TinyBase(random_tiny_folder)
    checkpoint_blocks(base.unet)
    inside = [weakref.ref(module) for module in base.unet.modules()]
    gc.disable()
    try:
        del base.unet
        assert not any(module() for module in inside)
    finally:
        gc.enable()


class SingleStreamBlock(nn.Module):
    """As ComfyUI's of this name, it adds onto its input in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, *, vec):
        x += self.linear(x.clone()).sin() * vec
        return x


def test_blocks_that_change_their_inputs_are_computed_on_the_same_ones_twice():
    torch.manual_seed(0)
    blocks = nn.Sequential(SingleStreamBlock(), SingleStreamBlock())
    x, vec, passes = torch.randn(2, 3), torch.tensor(2.0, requires_grad=True), []
    for checkpointed in (False, True):
        if checkpointed:
            assert checkpoint_blocks(blocks) == 2
        hidden = x.clone()
        for block in blocks:
            hidden = block(hidden, vec=vec)
        passes.append((hidden.detach(), *torch.autograd.grad(hidden.square().sum(), [vec, *blocks.parameters()])))
    for plain, again in zip(*passes, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "low_memory", "checkpoint_every"])
def test_how_it_is_computed_makes_no_other_task(setting, tmp_path):
    line, plain = ConceptSequence.create(tmp_path / "line", "base"), TrainSettings()
    changed = TrainSettings(**{setting: 7 if setting == "checkpoint_every" else not getattr(plain, setting)})
    keys = [task_record(line, toy_concept("fox"), settings).key for settings in (plain, changed)]
    assert keys[0] == keys[1] != task_record(line, toy_concept("fox"), TrainSettings(rank=3)).key


def test_a_setting_at_its_default_makes_no_other_task(tmp_path, monkeypatch):
    """Else every sequence on disk would be trained again after an update that adds a setting."""
    line = ConceptSequence.create(tmp_path / "line", "base")
    seen = []
    monkeypatch.setattr("trainer.planning.digest", lambda value: seen.append(value) or "key")
    task_record(line, toy_concept("fox"), TrainSettings(rank=3, low_memory=False))
    assert seen[0]["settings"] == {"rank": 3}
