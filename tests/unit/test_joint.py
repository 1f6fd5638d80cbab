"""Joint attention: of a layer for Q, K and V, adapters train the rows of K and V; the names in files; nothing for Q."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.adapters import ADAPTERS
from trainer.adapters.factors import LoraFactors
from trainer.adapters.joint import join_factors
from trainer.adapters.layers import cross_attention_layers, prompt_layers, split_joint_attention
from trainer.adapters.layouts import LAYOUTS, METADATA_KEY, peft_config, read_lora, write_lora
from trainer.bases.view import shared_view
from trainer.errors import ContinualLoraError
from trainer.losses.fisher import per_sample_gradients

WIDTH = 4
PLACES = {"sd3": "joint_blocks.{}.context_block.attn.qkv", "flux": "double_blocks.{}.txt_attn.qkv"}
KV_ADAPTERS = sorted(set(ADAPTERS) - {"token_only"})
# What the layers of block 1 are called in the layouts, by hand.
FUSED = {name: place.format(1) for name, place in PLACES.items()}
STEMS = {
    "kohya": [
        "lora_transformer_transformer_blocks_1_attn_add_k_proj",
        "lora_transformer_transformer_blocks_1_attn_add_v_proj",
    ],
    "diffusers": [
        "transformer.transformer_blocks.1.attn.add_k_proj",
        "transformer.transformer_blocks.1.attn.add_v_proj",
    ],
    "peft": [
        "base_model.model.transformer_blocks.1.attn.add_k_proj",
        "base_model.model.transformer_blocks.1.attn.add_v_proj",
    ],
}
each_family = pytest.mark.parametrize("family", PLACES)


def model_of(family):
    """Two blocks, each with the layer of the text, of a different bias, and one of the image that looks like it."""
    model, rng = nn.Module(), torch.Generator().manual_seed(0)
    for index in range(2):
        for name in (
            PLACES[family].format(index),
            PLACES[family].format(index).replace("context", "x").replace("txt", "img"),
        ):
            *parents, last = name.split(".")
            node = model
            for part in parents:
                if not hasattr(node, part):
                    node.add_module(part, nn.Module())
                node = getattr(node, part)
            layer = nn.Linear(WIDTH, 3 * WIDTH)
            for parameter in layer.parameters():
                parameter.data = torch.randn(parameter.shape, generator=rng)
            node.add_module(last, layer)
    return model.requires_grad_(False)


def text_of(batch=2):
    return torch.randn(batch, 5, WIDTH, generator=torch.Generator().manual_seed(3))


def random_lora(view, rank=2, alpha=3.0):
    rng = torch.Generator().manual_seed(1)
    return {
        name: LoraFactors(torch.randn(rank, WIDTH, generator=rng), torch.randn(WIDTH, rank, generator=rng), alpha)
        for name in cross_attention_layers(view)
    }


@each_family
def test_the_text_streams_layers_are_found_and_answer_as_before(family):
    model = model_of(family)
    view = split_joint_attention(shared_view(model))
    places = [PLACES[family].format(index) for index in range(2)]
    assert cross_attention_layers(view) == [f"{place}.to_{part}" for place in places for part in "kv"]
    for place in places:
        joint = model.get_submodule(place)
        assert isinstance(joint, nn.Linear)
        assert torch.equal(view.get_submodule(place)(text_of()), joint(text_of()))
        whole = view.get_parameter(f"{place}.joint.weight")
        assert whole.untyped_storage().data_ptr() == joint.weight.untyped_storage().data_ptr()
        for part in ("to_k", "to_v"):
            rows = view.get_parameter(f"{place}.{part}.weight")
            assert rows.shape == (WIDTH, WIDTH) and rows.untyped_storage().nbytes() <= 4  # a place, not a copy
    assert prompt_layers(model) == cross_attention_layers(view)


@pytest.mark.parametrize("name", KV_ADAPTERS)
@pytest.mark.parametrize("tasks", [1, 2])
def test_an_adapter_changes_the_rows_of_k_and_v_alone(name, tasks):
    """Also of a second task, where `fresh_lora` folds the first one beside the rows."""
    model, rng = model_of("flux"), torch.Generator().manual_seed(2)
    files = None
    for _ in range(tasks):
        view = split_joint_attention(shared_view(model))
        adapter = ADAPTERS[name](view, 2, 3.0, torch.Generator().manual_seed(0))
        if files is not None:
            adapter.go_on_from(files)
        for parameter in adapter.parameters.values():
            parameter.data = torch.randn(parameter.shape, generator=rng)
        files = adapter.files()
    for index in range(2):
        place = PLACES["flux"].format(index)
        joint, total = model.get_submodule(place), torch.zeros(3 * WIDTH, WIDTH)
        for part, start in (("to_k", WIDTH), ("to_v", 2 * WIDTH)):
            update = adapter.deltas()[f"{place}.{part}"] + adapter.past.get(f"{place}.{part}", 0)
            assert update.abs().max() > 0.01
            total[start : start + WIDTH] = update
        expected = F.linear(text_of(), joint.weight + total, joint.bias)
        with torch.no_grad():
            torch.testing.assert_close(view.get_submodule(place)(text_of()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", KV_ADAPTERS)
def test_gradients_by_sample_are_those_of_batches_of_one(name):
    view = split_joint_attention(shared_view(model_of("sd3")))
    adapter = ADAPTERS[name](view, 2, 2.0, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(4)
    for parameter in adapter.parameters.values():
        parameter.data = torch.randn(parameter.shape, generator=rng)

    def losses(x):
        layers = [view.get_submodule(PLACES["sd3"].format(index)) for index in range(2)]
        return sum(layer(x).square().mean((1, 2)) for layer in layers)

    with per_sample_gradients(adapter.layers, 3) as gradients:
        losses(text_of(3)).sum().backward()
    for b in range(3):
        alone = torch.autograd.grad(losses(text_of(3)[b : b + 1]).sum(), list(adapter.parameters.values()))
        for key, gradient in zip(adapter.parameters, alone, strict=True):
            torch.testing.assert_close(gradients[key][b], gradient, atol=1e-5, rtol=1e-5)


@each_family
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_without_loss(family, layout):
    view = split_joint_attention(shared_view(model_of(family)))
    lora = random_lora(view)
    tensors, metadata = write_lora(lora, view, layout)
    if layout == "peft":
        metadata = {METADATA_KEY: f'{{"unet.lora_alpha": {peft_config(lora)["lora_alpha"]}}}'}
    back = read_lora(tensors, metadata, view)
    assert list(back) == list(lora)
    for name, factors in lora.items():
        assert torch.equal(back[name].down, factors.down) and torch.equal(back[name].up, factors.up)
        assert back[name].alpha == factors.alpha
    stems = STEMS.get(layout, [f"diffusion_model.{FUSED[family]}"])
    assert set(stems) <= {key.rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key}
    assert len({key for key in tensors if "down" in key or "lora_A" in key}) == 2 * len(stems)


def test_peft_finds_the_layers_by_diffusers_names():
    view = split_joint_attention(shared_view(model_of("sd3")))
    pattern = peft_config(random_lora(view))["target_modules"]
    blocks = nn.ModuleDict(
        {"attn": nn.ModuleDict({n: nn.Linear(2, 2) for n in ("to_k", "add_q_proj", "add_k_proj", "add_v_proj")})}
    )
    found = [
        name
        for name, _ in nn.ModuleDict({"transformer_blocks": nn.ModuleList([blocks])}).named_modules()
        if re.fullmatch(pattern, name)
    ]
    assert found == ["transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.attn.add_v_proj"]


def test_a_lora_of_the_whole_layer_by_hand():
    key = LoraFactors(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), 2.0)  # scale 2
    value = LoraFactors(torch.tensor([[5.0, 6.0]]), torch.tensor([[7.0], [8.0]]), 1.0)  # scale 1
    whole = join_factors({"to_k": key, "to_v": value})
    assert whole.rank == 2
    assert whole.delta.tolist() == [[0, 0], [0, 0], [6, 12], [8, 16], [35, 42], [40, 48]]


@each_family
def test_a_lora_of_kohyas_scripts_is_taken_if_it_leaves_the_queries(family):
    view = split_joint_attention(shared_view(model_of(family)))
    stem = "lora_unet_" + FUSED[family].replace(".", "_")
    up = torch.zeros(3 * WIDTH, 2)
    up[WIDTH:, 0] = 1.0
    up[2 * WIDTH :, 1] = 2.0  # the second rank is for V alone
    down = torch.arange(2.0 * WIDTH).view(2, WIDTH)
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(4.0)}
    lora = read_lora(tensors, {}, view)
    assert list(lora) == [f"{FUSED[family]}.to_k", f"{FUSED[family]}.to_v"]
    key, value = lora.values()
    assert (key.rank, key.alpha, value.rank, value.alpha) == (1, 2.0, 2, 4.0)
    torch.testing.assert_close(torch.cat([torch.zeros(WIDTH, WIDTH), key.delta, value.delta]), 2 * up @ down)
    up[0, 0] = 0.5
    with pytest.raises(ContinualLoraError, match="changes the queries, too"):
        read_lora(tensors, {}, view)


@each_family
def test_keys_alone_and_with_the_queries_are_refused(family):
    view = split_joint_attention(shared_view(model_of(family)))
    lora = random_lora(view)
    both = write_lora(lora, view, "kohya")[0] | write_lora(lora, view, "comfyui")[0]
    with pytest.raises(ContinualLoraError, match=r"each layer once\. It holds `.*\.0\..*\.to_k` alone and with"):
        read_lora(both, {}, view)


@pytest.mark.parametrize("part", ["add_q_proj", "to_k", "to_add_out"])
def test_other_layers_of_the_attention_are_refused(part):
    view = split_joint_attention(shared_view(model_of("flux")))
    tensors, _ = write_lora(random_lora(view), view, "diffusers")
    key = f"transformer.transformer_blocks.0.attn.{part}.lora_A.weight"
    with pytest.raises(ContinualLoraError, match=f"`{key}` and 0 other tensors"):
        read_lora(tensors | {key: torch.ones(1, WIDTH)}, {}, view)
