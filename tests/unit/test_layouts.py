"""The key layouts of other tools: names by hand, no loss on the way, peft itself as the judge; a LoRA to start from."""

import json
import math
from types import SimpleNamespace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.toy import ToyBase, toy_concept, toy_settings
from tests.unit.test_kohya import unet_of
from trainer.adapters import ADAPTERS
from trainer.adapters.factors import LoraFactors
from trainer.adapters.layers import cross_attention_layers
from trainer.adapters.layouts import LAYOUTS, METADATA_KEY, load_lora, peft_config, read_lora, write_lora
from trainer.adapters.lora import LoraAdapter
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.teach import teach

LAYER = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
STEMS = {
    "kohya": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "comfyui": "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "diffusers": "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "peft": "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
}

FACTORS = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "comfyui": ("lora_down.weight", "lora_up.weight"),
    "diffusers": ("lora_A.weight", "lora_B.weight"),
    "peft": ("lora_A.weight", "lora_B.weight"),
}


def random_lora(unet, rank=3, alpha=1.5):
    rng = torch.Generator().manual_seed(0)
    return {
        name: LoraFactors(torch.randn(rank, width, generator=rng), torch.randn(height, rank, generator=rng), alpha)
        for name in cross_attention_layers(unet)
        for height, width in [unet.get_parameter(f"{name}.weight").shape]
    }


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[n].down, other[n].down)
        and torch.equal(one[n].up, other[n].up)
        and one[n].alpha == other[n].alpha
        for n in one
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_without_loss(layout, tiny, tmp_path):
    lora = random_lora(tiny.unet)
    tensors, metadata = write_lora(lora, tiny.unet, layout)
    if layout == "peft":  # alpha is in the file beside it
        metadata = {METADATA_KEY: json.dumps({"unet.lora_alpha": peft_config(lora)["lora_alpha"]})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata)
    assert same(load_lora(tmp_path / "lora.safetensors", tiny.unet), lora)
    down, up = FACTORS[layout]
    assert torch.equal(tensors[f"{STEMS[layout]}.{down}"], lora[LAYER].down)
    assert torch.equal(tensors[f"{STEMS[layout]}.{up}"], lora[LAYER].up)
    assert len(tensors) == len(lora) * (3 if layout in ("kohya", "comfyui") else 2)


def test_alpha_that_is_written_nowhere_is_the_rank(tiny):
    tensors, _ = write_lora(random_lora(tiny.unet, rank=3), tiny.unet, "peft")
    assert {factors.alpha for factors in read_lora(tensors, {}, tiny.unet).values()} == {3.0}


def test_older_names_are_read(tiny):
    lora = random_lora(tiny.unet, rank=2, alpha=2.0)
    stem = STEMS["diffusers"].replace(".to_k", "")
    tensors = {
        f"{stem}.processor.to_k_lora.down.weight": lora[LAYER].down,
        f"{stem}.processor.to_k_lora.up.weight": lora[LAYER].up,
    }
    assert same(read_lora(tensors, {}, tiny.unet), {LAYER: lora[LAYER]})
    tensors = {f"{stem}.to_k.lora.down.weight": lora[LAYER].down, f"{stem}.to_k.lora.up.weight": lora[LAYER].up}
    assert same(read_lora(tensors, {}, tiny.unet), {LAYER: lora[LAYER]})


def test_xl_is_read_in_both_words():
    unet = unet_of(3, 2, [False, True, True])
    unet.label_emb = nn.Identity()
    block = nn.Module()
    block.attn2 = nn.Module()
    block.attn2.to_v = nn.Linear(4, 2, bias=False)
    unet.input_blocks[4][1].transformer_blocks = nn.ModuleList([block])
    unet.middle_block = nn.ModuleList()
    lora = random_lora(unet, rank=1, alpha=1.0)
    assert list(lora) == ["input_blocks.4.1.transformer_blocks.0.attn2.to_v"]
    for stem in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_v",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_v",
    ):
        factors = next(iter(lora.values()))
        tensors = {f"{stem}.lora_down.weight": factors.down, f"{stem}.lora_up.weight": factors.up}
        assert same(read_lora(tensors, {}, unet), lora)
    assert next(iter(write_lora(lora, unet, "kohya")[0])).startswith("lora_unet_input_blocks_4_1_")
    assert next(iter(write_lora(lora, unet, "diffusers")[0])).startswith("unet.down_blocks.1.attentions.0.")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight", (1, 96)),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (1, 128)),
        (f"{STEMS['kohya']}.dora_scale", (96,)),
        (f"{STEMS['kohya']}.hada_w1_a", (96, 1)),
        (f"{STEMS['kohya']}.lora_down.weight", (1, 128, 1, 1)),
    ],
    ids=["self-attention", "text encoder", "DoRA", "LoHa", "convolution"],
)
def test_anything_else_is_refused_and_not_dropped(key, shape, tiny):
    tensors, _ = write_lora(random_lora(tiny.unet), tiny.unet, "kohya")
    with pytest.raises(ContinualLoraError) as caught:
        read_lora(tensors | {key: torch.ones(shape)}, {}, tiny.unet)
    assert f"`{key}` and 0 other tensors" in str(caught.value) and "Load LoRA" in str(caught.value)


def test_half_of_a_pair_is_an_error(tiny):
    tensors, _ = write_lora(random_lora(tiny.unet), tiny.unet, "kohya")
    del tensors[f"{STEMS['kohya']}.lora_up.weight"]
    with pytest.raises(ContinualLoraError, match="both factors"):
        read_lora(tensors, {}, tiny.unet)
    with pytest.raises(ContinualLoraError, match="It is empty"):
        read_lora({}, {}, tiny.unet)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_lora_of_a_failed_training_is_refused(odd, tiny):
    tensors, _ = write_lora(random_lora(tiny.unet), tiny.unet, "kohya")
    tensors[f"{STEMS['kohya']}.lora_up.weight"][0, 0] = odd
    with pytest.raises(ContinualLoraError, match="infinite or NaN"):
        read_lora(tensors, {}, tiny.unet)


def test_a_layer_in_two_layouts_is_refused_and_not_overwritten(tiny):
    lora = random_lora(tiny.unet)
    both = write_lora(lora, tiny.unet, "kohya")[0] | write_lora({LAYER: lora[LAYER]}, tiny.unet, "comfyui")[0]
    with pytest.raises(ContinualLoraError, match=rf"`{STEMS['comfyui']}\.alpha` and 2 other .* second time"):
        read_lora(both, {}, tiny.unet)


@pytest.mark.parametrize("setting", [{"alpha_pattern": {LAYER: 8.0}}, {"use_rslora": True}, {"use_dora": True}])
def test_another_scale_than_alpha_over_rank_is_refused_and_not_ignored(setting, tiny):
    tensors, metadata = write_lora(random_lora(tiny.unet), tiny.unet, "diffusers")
    plain = json.loads(metadata[METADATA_KEY]) | {f"unet.{name}": type(value)() for name, value in setting.items()}
    assert read_lora(tensors, {METADATA_KEY: json.dumps(plain)}, tiny.unet)
    config = plain | {f"unet.{name}": value for name, value in setting.items()}
    with pytest.raises(ContinualLoraError, match=f"scale alpha / rank.*{next(iter(setting))}"):
        read_lora(tensors, {METADATA_KEY: json.dumps(config)}, tiny.unet)


def test_peft_and_diffusers_know_one_rank():
    lora = {
        "a": LoraFactors(torch.ones(1, 2), torch.ones(2, 1), 1.0),
        "b": LoraFactors(torch.ones(2, 2), torch.ones(2, 2), 1.0),
    }
    with pytest.raises(ContinualLoraError, match=r"\(1, 1.0\), \(2, 1.0\)"):
        peft_config(lora)


def nested(linears):
    """A tree of modules with linear layers at the given names."""
    root = nn.Module()
    for name, linear in linears.items():
        *parents, last = name.split(".")
        node = root
        for part in parents:
            if not hasattr(node, part):
                node.add_module(part, nn.Module())
            node = getattr(node, part)
        node.add_module(last, linear)
    return root


def test_peft_itself_reads_what_is_written_for_it(tiny, tmp_path):
    lora = random_lora(tiny.unet)
    tensors, _ = write_lora(lora, tiny.unet, "peft")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft_config(lora)))
    names = [key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key]
    plain = {
        name: nn.Linear(f.down.shape[1], len(f.up), bias=False) for name, f in zip(names, lora.values(), strict=True)
    }
    before = {name: linear.weight.detach().clone() for name, linear in plain.items()}
    tree = nested(plain)
    tree.config = SimpleNamespace(to_dict=dict)
    merged = peft.PeftModel.from_pretrained(tree, str(tmp_path)).merge_and_unload()
    for name, factors in zip(names, lora.values(), strict=True):
        torch.testing.assert_close(
            merged.get_submodule(name).weight - before[name], factors.delta, atol=1e-5, rtol=1e-5
        )


# --- an existing LoRA to start from ---


@pytest.mark.parametrize("adapter", ["lora", "fresh_lora", "full"])
def test_the_model_is_what_it_was_with_the_existing_lora(adapter):
    base = TinyBase()
    lora = dict(list(random_lora(base.unet, rank=2, alpha=1.0).items())[:3])
    start = ADAPTERS[adapter](base.unet, 4, 8.0, torch.Generator().manual_seed(0))
    start.start_from(lora)
    changed = TinyBase()
    for name, factors in lora.items():
        changed.unet.get_parameter(f"{name}.weight").data = changed.unet.get_parameter(f"{name}.weight") + factors.delta
    x, t, context = torch.randn(2, 8, 8, 8), torch.tensor([10, 500]), torch.randn(2, 5, 128)
    with torch.no_grad():
        torch.testing.assert_close(base.unet(x, t, context), changed.unet(x, t, context), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("alpha", [-3.0, 0.0])
def test_a_negative_scale_is_kept_and_one_of_zero_can_learn(alpha, tiny):
    lora = random_lora(tiny.unet, rank=2, alpha=alpha)
    adapter = LoraAdapter(TinyBase().unet, 4, 8.0, torch.Generator().manual_seed(0))
    adapter.start_from(lora)
    for name, delta in adapter.deltas().items():
        torch.testing.assert_close(delta, lora[name].delta, atol=1e-4, rtol=1e-4)
        assert adapter.parameters[f"{name}.lora_down"].abs().amax(1).min() > 0


def test_a_larger_rank_is_refused_and_vera_is_no_lora(tiny):
    lora = random_lora(tiny.unet, rank=5)
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ContinualLoraError, match='"rank" should be at least 5'):
        LoraAdapter(TinyBase().unet, 4, 4.0, rng).start_from(lora)
    for name in ("vera", "token_only"):
        with pytest.raises(ContinualLoraError, match="should train a LoRA"):
            ADAPTERS[name](TinyBase().unet, 4, 4.0, rng).start_from(lora)


def test_a_sequence_starts_from_it(tmp_path):
    settings = toy_settings(recipe="lora", steps=2, rank=2, learning_rate=0.0, alpha=3.0)
    base = ToyBase()
    lora = random_lora(base.unet, rank=2, alpha=3.0)
    empty = ConceptSequence.create(tmp_path / "a", base.fingerprint)
    line = teach(base, toy_concept("one"), settings, empty, start=lora)
    kept = load_file(line.folder(line.tasks[0]) / "lora.safetensors")
    assert same(read_lora(kept, {}, base.original), lora)  # a learning rate of 0: what went in comes out
    again = teach(
        ToyBase(), toy_concept("one"), settings, empty, on_step=lambda record: pytest.fail("trained again"), start=lora
    )
    assert again.head == line.head
    assert teach(ToyBase(), toy_concept("one"), settings, empty).head != line.head
    with pytest.raises(ContinualLoraError, match="Only the first concept"):
        teach(ToyBase(), toy_concept("two"), settings, line, start=lora)
