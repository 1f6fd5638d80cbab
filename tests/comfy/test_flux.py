"""Flux through a server: two concepts are taught, and the saved files give the core's nodes the same picture."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.server import Client, Server

from .checkpoint import SMALL_T5
from .test_workflows import complaints, defaults_of_options, picture, pixels_of, run

CONCEPTS = {"fox": "animal", "sunflower": "plant"}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loading(checkpoint: str) -> dict[str, Any]:
    """The node that loads the model; its T5 fills prompts up to 16 pieces."""
    return {"base": node("LoadWithTextEncoder", ckpt_name=checkpoint, options=json.dumps(SMALL_T5), t5_length=16)}


def drawing(model: list[Any], clip: list[Any], text: str) -> dict[str, Any]:
    """Nodes that draw one picture, in a step at guidance 3.5."""
    return {
        "text": node("CLIPTextEncode", clip=clip, text=text),
        "guided": node("FluxGuidance", conditioning=["text", 0], guidance=3.5),
        "empty": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=model,
            positive=["guided", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            **{"seed": 5, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        ),
        "decoded": node("VAEDecode", samples=["sampler", 0], vae=["base", 2]),
        "saved": node("SaveImage", images=["decoded", 0], filename_prefix="flux"),
    }


def teaching() -> dict[str, Any]:
    """Nodes that teach the concepts in sequence and save the result."""
    graph: dict[str, Any] = {}
    graph["options"] = node(
        "ContinualLoRA_TrainOptions",
        **(defaults_of_options() | {"resolution": 64, "batch_size": 1, "fisher_draws": 2, "mixed_precision": "bf16"}),
    )
    models = {name: ["base", index] for index, name in enumerate(("model", "clip", "vae"))}
    settings = {"sequence_name": "flux", "recipe": "lora_ewc_dc", "steps": 3, "rank": 2, "learning_rate": 1e-2}
    settings |= {"penalty_weight": 10.0, "seed": 0, "options": ["options", 0]}
    before: dict[str, Any] = {}
    for name, noun in CONCEPTS.items():
        words = {"token": f"my-{name}", "class_noun": noun, "prompt": "photo of a <{token}> {class_noun}"}
        graph[name] = node("ContinualLoRA_LoadConceptImages", folder=f"bundled: {name}", **words)
        graph[f"taught {name}"] = node("ContinualLoRA_Train", **models, concept=[name, 0], **settings, **before)
        before = {"sequence": [f"taught {name}", 0]}
    graph["files"] = node("ContinualLoRA_SaveSequence", **before, filename="flux")
    return graph


def test_flux_learns_and_the_core_draws_the_same_with_its_files(
    client: Client, server: Server, flux_checkpoint: str
) -> None:
    start = len(server.log)
    base = loading(flux_checkpoint)
    last = f"taught {[*CONCEPTS][-1]}"
    done = run(client, base | teaching() | drawing([last, 1], [last, 2], "photo of a <my-fox> animal")).outputs
    path, fox, *_ = done["files"]["text"]
    layers = {name.split(".")[0].split("_attn_")[1] for name in load_file(path)}
    assert layers == {"add_k_proj", "add_v_proj"}  # of the text stream
    vectors = load_file(server.base / "models" / "embeddings" / f"{fox.removeprefix('embedding:')}.safetensors")
    assert {name: value.shape[-1] for name, value in vectors.items()} == {"clip_l": 768, "t5xxl": 4096}
    lora = {"lora": node("LoraLoaderModelOnly", model=["base", 0], lora_name=Path(path).name, strength_model=1.0)}
    by_core = run(client, base | lora | drawing(["lora", 0], ["base", 1], f"photo of a {fox} animal")).outputs
    untrained = run(client, base | drawing(["base", 0], ["base", 1], f"photo of a {fox} animal")).outputs
    ours, theirs, without = (
        pixels_of(picture(client, found["saved"]["images"][0])) for found in (done, by_core, untrained)
    )
    assert (ours - theirs).abs().max() <= 1 < (ours - without).abs().max()
    assert complaints(server, start) == []


def test_captions_that_cannot_share_a_batch_are_refused_before_the_first_step(
    client: Client, server: Server, flux_checkpoint: str
) -> None:
    graph = loading(flux_checkpoint) | teaching()
    graph["options"]["inputs"] |= {"batch_size": 2, "caption_dropout": 0.5}  # the empty prompt is as short as they get
    graph["fox"]["inputs"]["prompt"] = "photo of a <{token}> {class_noun}, " + "asleep on a red chair, " * 4
    graph["taught fox"]["inputs"]["sequence_name"] = "too long"
    kept = {name: graph[name] for name in ("base", "options", "fox", "taught fox")}
    failed = client.run(kept).error
    assert failed
    assert re.search(r"of one length\. These are 16, \d+ pieces long", failed["exception_message"])
    assert not [*(server.base / "output" / "continual_lora").glob("too long/partial/*")]
