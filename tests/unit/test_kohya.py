"""LoRA files: their key names, and the way there and back."""

import pytest
import torch
from torch import nn

from tests.toy import ToyBase
from trainer.adapters.kohya import from_kohya, kohya_key, kohya_prefixes, stems_from_kohya, to_kohya
from trainer.adapters.layers import cross_attention_layers
from trainer.adapters.lora import LoraAdapter, state_of
from trainer.errors import ContinualLoraError


class ResBlock(nn.Identity):
    pass


class SpatialTransformer(nn.Identity):
    pass


class Downsample(nn.Identity):
    pass


class Upsample(nn.Identity):
    pass


def unet_of(levels, resblocks, attention):
    """The blocks of an original-layout U-Net: `attention` says for each level whether it has transformers."""
    unet = nn.Module()
    parts = [[ResBlock, SpatialTransformer] if attends else [ResBlock] for attends in attention]
    inputs, outputs = [[nn.Conv2d(1, 1, 1)]], []
    for level in range(levels):
        inputs += [[kind() for kind in parts[level]] for _ in range(resblocks)]
        inputs += [[Downsample()]] if level < levels - 1 else []
        back = [[kind() for kind in parts[levels - 1 - level]] for _ in range(resblocks + 1)]
        back[-1] += [Upsample()] if level < levels - 1 else []
        outputs += back
    unet.input_blocks = nn.ModuleList(nn.ModuleList(block) for block in inputs)
    unet.output_blocks = nn.ModuleList(nn.ModuleList(block) for block in outputs)
    return unet


def test_keys_of_the_embedded_base(tiny):
    names = kohya_prefixes(tiny.unet)
    stems = {kohya_key(layer, names) for layer in cross_attention_layers(tiny.unet)}
    blocks = ["down_blocks_0_attentions_0", "down_blocks_1_attentions_0", "mid_block_attentions_0"]
    blocks += [f"up_blocks_{level}_attentions_{index}" for level in (0, 1) for index in (0, 1)]
    assert stems == {f"lora_unet_{block}_transformer_blocks_0_attn2_to_{kv}" for block in blocks for kv in "kv"}
    layer = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    assert kohya_key(layer, names) == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


# What diffusers calls the transformers of the two published layouts.
SD15 = {f"input_blocks.{p}.1": f"down_blocks.{b}.attentions.{i}" for p, b, i in
        ((1, 0, 0), (2, 0, 1), (4, 1, 0), (5, 1, 1), (7, 2, 0), (8, 2, 1))}  # fmt: skip
SD15 |= {f"output_blocks.{p}.1": f"up_blocks.{p // 3}.attentions.{p % 3}" for p in range(3, 12)}
# Without attention at its first level; only XL itself, which has a vector conditioning, keeps the original words.
NO_FIRST = {f"input_blocks.{p}.1": f"down_blocks.{b}.attentions.{i}" for p, b, i in
            ((4, 1, 0), (5, 1, 1), (7, 2, 0), (8, 2, 1))}  # fmt: skip
NO_FIRST |= {f"output_blocks.{p}.1": f"up_blocks.{p // 3}.attentions.{p % 3}" for p in range(6)}


@pytest.mark.parametrize(
    ("expected", "unet"),
    [
        (SD15, unet_of(4, 2, [True, True, True, False])),
        (NO_FIRST, unet_of(3, 2, [False, True, True])),
    ],
    ids=["sd15", "no attention at the first level"],
)
def test_kohya_prefixes_of_published_layouts(expected, unet):
    names = kohya_prefixes(unet)
    assert {block: names[block] for block in expected} == expected
    assert names["middle_block.1"] == "mid_block.attentions.0"


def test_keys_of_xl_are_in_the_original_words():
    unet = unet_of(3, 2, [False, True, True])
    unet.label_emb = nn.Identity()
    names, layer = kohya_prefixes(unet), "input_blocks.4.1.transformer_blocks.1.attn2.to_v"
    assert kohya_key(layer, names) == "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v"
    assert kohya_key(layer.replace("input_blocks.4", "output_blocks.5"), names).startswith(
        "lora_unet_output_blocks_5_1_"
    )
    middle = "middle_block.1.transformer_blocks.9.attn2.to_k"
    assert kohya_key(middle, names) == "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_k"


def test_round_trip_through_a_file_is_exact(tiny):
    adapter = LoraAdapter(tiny.unet, 2, 3.0, torch.Generator().manual_seed(0))
    for parameter in adapter.parameters.values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    names = kohya_prefixes(tiny.unet)
    tensors = to_kohya(adapter.factors(), names)
    assert len(tensors) == 3 * len(adapter.names)
    back = from_kohya(tensors, adapter.names, names)
    state = adapter.state_dict()
    assert set(state) == set(state_of(back)) and {factors.alpha for factors in back.values()} == {3.0}
    assert all(torch.equal(value, state[name]) for name, value in state_of(back).items())


def test_tensors_by_hand():
    base = ToyBase()
    adapter = LoraAdapter(base.unet, 1, 4.0, torch.Generator().manual_seed(0))
    tensors = to_kohya(adapter.factors(), kohya_prefixes(base.unet))
    stem = "lora_unet_mid_block_attentions_0_attn2_to_v"
    assert tensors[f"{stem}.lora_down.weight"].shape == (1, 3) and tensors[f"{stem}.lora_up.weight"].shape == (2, 1)
    assert tensors[f"{stem}.alpha"].shape == () and tensors[f"{stem}.alpha"].item() == 4.0
    assert list(stems_from_kohya(tensors)) == sorted({key.split(".")[0] for key in tensors})


def test_unknown_key_is_an_error_and_not_dropped():
    base = ToyBase()
    adapter = LoraAdapter(base.unet, 2, 2.0, torch.Generator().manual_seed(0))
    names = kohya_prefixes(base.unet)
    tensors = to_kohya(adapter.factors(), names)
    for part in ("lora_down.weight", "lora_up.weight", "alpha"):
        tensors[f"lora_unet_other_to_k.{part}"] = torch.ones(1, 1)
        tensors[f"lora_te_text_model.{part}"] = torch.ones(1, 1)
    with pytest.raises(ContinualLoraError) as caught:
        from_kohya(tensors, adapter.names, names)
    assert "`lora_te_text_model` and 1 more do not" in str(caught.value) and "Use a LoRA" in str(caught.value)
