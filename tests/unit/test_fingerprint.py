"""One base is told from another, and known again in another number format."""

import pytest
import torch
from torch import nn

from tests.toy import ToyBase, ToyUNet
from trainer.adapters.lora import LoraAdapter
from trainer.bases.fingerprint import fingerprint, fingerprint_of
from trainer.bases.view import shared_view


def wide_unet(seed=0):
    """A U-Net whose keys and values hold 2 * 20_000 random numbers."""
    unet = ToyUNet()
    for name in ("to_k", "to_v"):
        layer = nn.Linear(200, 100, bias=False)
        layer.weight.data = 0.05 * torch.randn(100, 200, generator=torch.Generator().manual_seed(seed))
        setattr(unet.middle_block[1].attn2, name, layer)
    return unet


@pytest.mark.parametrize("seed", range(5))
def test_a_checkpoint_in_fp32_is_the_same_when_it_is_loaded_in_fp16(seed):
    unet = wide_unet(seed)
    expected = fingerprint(unet)
    assert len(expected) == 64 and fingerprint(unet.half()) == expected
    assert fingerprint(unet.float()) == expected  # fp16 values in fp32, as a host computes on the CPU


def test_other_weights_are_another_base():
    assert fingerprint(wide_unet(0)) != fingerprint(wide_unet(1))
    unet = wide_unet()
    before = fingerprint(unet)
    unet.middle_block[1].attn2.to_v.weight.data += 0.01 * torch.randn(
        100, 200, generator=torch.Generator().manual_seed(1)
    )
    assert fingerprint(unet) != before  # a LoRA merged into it


def test_other_shapes_with_the_same_numbers_are_another_base():
    unet, longer = ToyUNet(), ToyUNet()
    for model, rows in ((unet, 2), (longer, 4)):
        for name in ("to_k", "to_v"):
            getattr(model.middle_block[1].attn2, name).weight.data = torch.ones(rows, 3)
    assert fingerprint(unet) != fingerprint(longer)


def test_it_is_that_of_the_base_under_a_view():
    base = ToyBase()
    assert fingerprint(shared_view(base.original)) == base.fingerprint
    LoraAdapter(base.unet, 2, 2.0, torch.Generator())
    assert fingerprint(base.original) == base.fingerprint


def test_what_the_user_put_on_it_makes_another_base_and_nothing_the_same():
    attention = ToyUNet().middle_block[1].attn2
    weights = {f"middle_block.1.attn2.{n}": getattr(attention, n).weight for n in ("to_k", "to_v")}
    assert fingerprint_of(weights) == fingerprint_of(weights, b"") == fingerprint(ToyUNet())
    assert len({fingerprint_of(weights, changes) for changes in (b"", b"one", b"two")}) == 3
