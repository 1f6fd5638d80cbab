"""The harness itself: what the page saves is converted to what the server takes."""

from typing import Any

import pytest

from tests.server import Client, PromptRejectedError

from .workflow import to_prompt


def node(number: int, kind: str, values: list[Any] | None = None, inputs: dict | None = None, **more: Any) -> dict:
    """A node as the page saves it; `inputs` maps a socket to (link, type)."""
    slots = [{"name": name, "type": kind_, "link": link} for name, (link, kind_) in (inputs or {}).items()]
    return {"id": number, "type": kind, "inputs": slots, "outputs": [], "widgets_values": values, "mode": 0, **more}


def workflow() -> dict[str, Any]:
    """Text to image on the embedded base, with a note, a reroute, a primitive and a bypassed LoRA loader."""
    model, clip = {"name": "MODEL", "type": "MODEL"}, {"name": "CLIP", "type": "CLIP"}
    nodes = [
        node(1, "ContinualLoRA_LoadTinyBase"),
        node(2, "CLIPTextEncode", ["photo of a cat"], {"clip": (2, "CLIP")}),
        node(3, "CLIPTextEncode", [""], {"clip": (2, "CLIP"), "text": (None, "STRING")}),
        node(4, "EmptyLatentImage", [64, 64, 1], {"width": (9, "INT")}),
        node(
            5,
            "KSampler",
            [1, "randomize", 2, 2.0, "euler", "normal", 1.0],
            {
                "model": (4, "MODEL"),
                "positive": (5, "CONDITIONING"),
                "negative": (6, "CONDITIONING"),
                "latent_image": (7, "LATENT"),
            },
        ),
        node(6, "VAEDecode", [], {"samples": (8, "LATENT"), "vae": (3, "VAE")}),
        node(7, "SaveImage", ["tiny"], {"images": (10, "IMAGE")}),
        node(8, "LoraLoader", ["no.safetensors", 1, 1], {"model": (1, "MODEL"), "clip": (12, "CLIP")}, mode=4),
        node(9, "Reroute", None, {"": (4, "*")}),
        node(10, "PrimitiveNode", [64, "fixed"]),
        node(11, "MarkdownNote", ["read me"]),
    ]
    nodes[7]["outputs"] = [model, clip]
    links: list[Any] = [
        [1, 1, 0, 8, 0, "MODEL"],
        [2, 8, 1, 2, 0, "CLIP"],
        [3, 1, 2, 6, 1, "VAE"],
        [4, 8, 0, 9, 0, "*"],
        [5, 2, 0, 5, 1, "CONDITIONING"],
        [6, 3, 0, 5, 2, "CONDITIONING"],
        [7, 4, 0, 5, 3, "LATENT"],
        {"id": 8, "origin_id": 5, "origin_slot": 0, "target_id": 6, "target_slot": 0, "type": "LATENT"},
        [9, 10, 0, 4, 0, "INT"],
        [10, 6, 0, 7, 0, "IMAGE"],
        [11, 9, 0, 5, 0, "MODEL"],
        [12, 1, 1, 8, 1, "CLIP"],
    ]
    nodes[4]["inputs"][0]["link"] = 11
    return {"nodes": nodes, "links": links}


def test_workflow_of_the_page_becomes_a_prompt_that_runs(client: Client) -> None:
    prompt = to_prompt(workflow(), client.object_info())
    assert prompt["5"]["inputs"] == {
        "seed": 1,
        "steps": 2,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
        "model": ["1", 0],
        "positive": ["2", 0],
        "negative": ["3", 0],
        "latent_image": ["4", 0],
    }
    assert prompt["2"]["inputs"] == {"text": "photo of a cat", "clip": ["1", 1]}
    assert prompt["4"]["inputs"] == {"width": 64, "height": 64, "batch_size": 1}
    assert set(prompt) == {"1", "2", "3", "4", "5", "6", "7"}
    run = client.run(prompt)
    assert run.status == "success", run.error
    assert len(run.images) == 1


def test_values_that_do_not_fit_the_widgets_are_an_error(client: Client) -> None:
    for values in ([64, 64], [64, 64, 1, 5]):
        broken = {"nodes": [node(4, "EmptyLatentImage", values)], "links": []}
        with pytest.raises(ValueError, match=r"Node 4 \(EmptyLatentImage\)"):
            to_prompt(broken, client.object_info())


def test_prompt_with_a_missing_input_is_refused(client: Client) -> None:
    prompt = {"7": {"class_type": "SaveImage", "inputs": {"filename_prefix": "tiny"}}}
    with pytest.raises(PromptRejectedError) as refused:
        client.run(prompt)
    assert "7" in refused.value.details["node_errors"]


def test_long_run_can_be_interrupted(client: Client) -> None:
    prompt = to_prompt(workflow(), client.object_info())
    prompt["5"]["inputs"] |= {"steps": 5000}
    number = client.queue(prompt)
    while not client.get("/queue")["queue_running"]:
        pass
    client.interrupt()
    run = client.wait(number, timeout=60)
    assert run.interrupted
    assert run.error is None
