"""The embedded base in a real ComfyUI: the host computes what our modules compute, and the core nodes run on it."""

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scripts.tiny_base.train import export, vocabulary
from tests.server import Client, Server
from trainer.bases.tiny.autoencoder import Autoencoder
from trainer.bases.tiny.text import TextEncoder
from trainer.bases.tiny.unet import UNet

from .inside import run_inside

ROOT = Path(__file__).parents[2]
LAYER = "input_blocks_1_1_transformer_blocks_0_attn2_to_v"


def text_to_image(positive: str, seed: int = 1, steps: int = 2) -> dict:
    """A prompt in the API format on the embedded base: one 64x64 image by node 7."""
    sampling = {"seed": seed, "steps": steps, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": {"class_type": "ContinualLoRA_LoadTinyBase", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": positive}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": {**sampling, **links, "denoise": 1.0}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "tiny"}},
    }


def pixels(client: Client, prompt: dict) -> torch.Tensor:
    """Run the prompt; the first image of node 7 as [H, W, 3], 0..255."""
    run = client.run(prompt)
    assert run.status == "success", run.error
    with Image.open(io.BytesIO(client.view(run.outputs["7"]["images"][0]))) as image:
        return torch.tensor(list(image.convert("RGB").tobytes())).reshape(image.height, image.width, 3)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = Autoencoder()
        autoencoder.to_latent.running_mean.normal_()
        autoencoder.to_latent.running_var.uniform_(0.5, 2)
        export(folder, autoencoder, TextEncoder(len(vocabulary())), UNet(), {})
    return folder


def test_host_computes_what_our_modules_compute(comfy_path: Path, random_weights: Path, tmp_path: Path) -> None:
    found = run_inside("tiny_parity.py", comfy_path, tmp_path, random_weights)
    assert found["differences"]["random state"] == 0
    assert max(found["differences"].values()) < 1e-5, found
    assert found["devices"] == ["meta", "meta"]


def test_images_of_an_evaluation_depend_on_vae_and_clip(comfy_path: Path, random_weights: Path, tmp_path: Path) -> None:
    """So that those on disk are not taken for what another VAE or a changed CLIP would draw."""
    found = run_inside("drawn_with.py", comfy_path, tmp_path, random_weights)
    plain = found.pop("nothing")
    assert all(found.pop(same) == plain for same in ("loaded again", "another object", "eps"))
    assert found["layer"] == plain | {"clip layer": "-2"}
    others = [json.dumps(how, sort_keys=True) for how in (plain, *found.values())]
    assert len(set(others)) == len(others) == 11


def test_core_nodes_make_an_image_of_the_base(client: Client, server: Server) -> None:
    image = pixels(client, text_to_image("photo of a cat"))
    assert image.shape == (64, 64, 3)
    assert image.float().std() > 1
    assert "unet missing" not in server.log
    assert "Missing VAE keys" not in server.log


def test_weight_of_a_word_and_order_of_words_count(client: Client) -> None:
    plain, strong = (pixels(client, text_to_image(f"photo of a {word}")) for word in ("cat", "(cat:1.5)"))
    assert not plain.equal(strong)


def test_embedding_in_a_prompt_stands_for_its_vectors(client: Client, server: Server) -> None:
    save_file({"clip_l": torch.ones(2, 128)}, server.base / "models" / "embeddings" / "ones.safetensors")
    without, with_it = (pixels(client, text_to_image(f"photo of a{word}")) for word in ("", " embedding:ones"))
    assert not without.equal(with_it)
    assert "does not exist" not in server.log
    assert "shape mismatch" not in server.log


def test_core_lora_loader_reads_kohya_keys_of_the_base(client: Client, server: Server) -> None:
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 128, generator=rng), torch.randn(96, 4, generator=rng)
    lora = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(4.0)}
    weights = {f"lora_unet_{LAYER}.{name}": value for name, value in lora.items()}
    save_file(weights, server.base / "models" / "loras" / "random.safetensors")
    prompt = text_to_image("photo of a cat")
    inputs = {"model": ["1", 0], "clip": ["1", 1], "lora_name": "random.safetensors", "strength_model": 1.0}
    prompt["8"] = {"class_type": "LoraLoader", "inputs": {**inputs, "strength_clip": 1.0}}
    prompt["5"]["inputs"]["model"] = ["8", 0]
    assert not pixels(client, prompt).equal(pixels(client, text_to_image("photo of a cat")))
    assert "lora key not loaded" not in server.log
    assert "NOT LOADED" not in server.log


def test_image_to_image_runs_on_the_base(client: Client) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    name = client.upload_image("red.png", stream.getvalue())
    prompt = text_to_image("photo of a cat")
    prompt["8"] = {"class_type": "LoadImage", "inputs": {"image": name}}
    prompt["9"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["8", 0], "vae": ["1", 2]}}
    prompt["5"]["inputs"] |= {"latent_image": ["9", 0], "denoise": 0.5}
    assert pixels(client, prompt).shape == (64, 64, 3)


def test_base_is_loaded_once_and_cached(client: Client) -> None:
    pixels(client, text_to_image("photo of a dog"))
    run = client.run(text_to_image("photo of a dog", seed=2))
    assert "1" in run.cached


def test_shallow_sd15_checkpoint_loads_in_the_core_loader(client: Client, server: Server, sd15_checkpoint: str) -> None:
    start = len(server.log)
    prompt = text_to_image("photo of a cat", steps=1)
    prompt["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": sd15_checkpoint}}
    assert pixels(client, prompt).shape == (64, 64, 3)
    for complaint in ("missing", "Missing", "unexpected", "left over"):
        assert complaint not in server.log[start:]
