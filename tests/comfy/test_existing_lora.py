"""A LoRA of another tool as the start of a sequence, in a real server."""

import json
from typing import Any

import torch
from safetensors.torch import save_file

from tests.server import Client, Server

from .test_tiny_base import pixels, text_to_image
from .test_workflows import load, of_kind

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0"


def with_training(client: Client, sequence: str, existing_lora: str) -> dict[str, Any]:
    """Text to image on the model that a training with a learning rate of 0 gives."""
    quickstart, prompt = load(client, "quickstart_cpu"), text_to_image("photo of a cat")
    first, _ = of_kind(quickstart, "ContinualLoRA_Train")
    inputs = quickstart[first]["inputs"]
    prompt["concept"] = quickstart[inputs["concept"][0]]
    base = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "concept": ["concept", 0]}
    changes = {"steps": 2, "learning_rate": 0.0, "recipe": "lora", "sequence_name": sequence}
    inputs = {**inputs, **base, **changes, "existing_lora": existing_lora}
    del inputs["options"]
    prompt["train"] = {"class_type": "ContinualLoRA_Train", "inputs": inputs}
    prompt["5"]["inputs"]["model"] = ["train", 1]
    return prompt


def test_the_model_is_what_load_lora_makes_of_it(client: Client, server: Server) -> None:
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 128, generator=rng), torch.randn(192, 2, generator=rng)
    factors = {f"{BLOCK}_attn2_to_v.lora_down.weight": down, f"{BLOCK}_attn2_to_v.lora_up.weight": up}
    save_file(factors, server.base / "models" / "loras" / "mine.safetensors")
    ours = pixels(client, with_training(client, "existing", "mine.safetensors"))
    loaded = text_to_image("photo of a cat")
    inputs = {"model": ["1", 0], "lora_name": "mine.safetensors", "strength_model": 1.0}
    loaded["8"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    loaded["5"]["inputs"]["model"] = ["8", 0]
    theirs, plain = pixels(client, loaded), pixels(client, text_to_image("photo of a cat"))
    assert (ours - theirs).abs().max() <= 1 < (ours - plain).abs().max()


def test_a_lora_that_was_written_anew_under_its_name_is_taken_anew(client: Client, server: Server) -> None:
    path, shape = server.base / "models" / "loras" / "again.safetensors", (2, 128)
    graph, drawn = with_training(client, "again", "again.safetensors"), list[torch.Tensor]()
    for seed in (0, 1):
        down = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        factors = {
            f"{BLOCK}_attn2_to_v.lora_down.weight": down,
            f"{BLOCK}_attn2_to_v.lora_up.weight": torch.ones(192, 2),
        }
        save_file(factors, path)
        drawn += [pixels(client, graph), pixels(client, graph)]
    first, same, second, _ = drawn
    assert torch.equal(first, same)
    assert (first - second).abs().max() > 1
    manifest = json.loads((server.base / "output" / "continual_lora" / "again" / "manifest.json").read_text())
    assert len(manifest["tasks"]) == 2


def test_a_lora_of_other_layers_is_refused_before_training(client: Client, server: Server) -> None:
    factors = {f"{BLOCK}_attn1_to_v.lora_{side}.weight": torch.ones(2, 2) for side in ("down", "up")}
    save_file(factors, server.base / "models" / "loras" / "other.safetensors")
    run = client.run(with_training(client, "refused", "other.safetensors"))
    assert run.error
    assert "attn1_to_v" in run.error["exception_message"]
    assert "Load LoRA" in run.error["exception_message"]
    assert not (server.base / "output" / "continual_lora" / "refused").exists()
