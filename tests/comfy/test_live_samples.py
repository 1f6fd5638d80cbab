"""Pictures of a running training: on a host's model against the host's own sampler, and in the node."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from tests.server import Client, Server

from .checkpoint import build_checkpoint
from .inside import run_inside
from .test_workflows import load, of_kind, sequence_folder

ROOT = Path(__file__).parents[2]
PREVIEW, JPEG = 1, 1  # of the server's binary messages


def test_the_last_picture_is_what_the_host_draws_with_the_finished_task(comfy_path: Path, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(comfy_path, "sd15", ROOT / "build" / "checkpoints")
    found = run_inside("live_samples.py", comfy_path, tmp_path, checkpoint)
    assert found["difference"] < 0.01 < min(found["spread"], found["difference of the steps"]), found
    assert found["same task"] and found["same modules"] and found["moved"] == [], found
    shape, spread, decoded = found["rough"]
    assert shape == [3, 64, 64] and spread > 0.01 and decoded == 0, found


async def binary_messages(client: Client, prompt: dict[str, Any]) -> list[bytes]:
    """What the server sends the page in binary while it runs a prompt."""
    received: list[bytes] = []
    address = f"{client.url}/ws?clientId={client.client_id}"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        await asyncio.get_running_loop().run_in_executor(None, client.queue, prompt)
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                received.append(message.data)
            elif json.loads(message.data)["type"] in ("execution_success", "execution_error"):
                return received
    raise AssertionError("The server closed the connection.")


def test_the_node_shows_them_and_keeps_them(client: Client, server: Server) -> None:
    quickstart = load(client, "quickstart_cpu")
    number, _ = of_kind(quickstart, "ContinualLoRA_Train")
    inputs = {**quickstart[number]["inputs"], "sequence_name": "shown", "steps": 5, "rank": 2, "recipe": "lora"}
    prompt = {n: node for n, node in quickstart.items() if n in {v[0] for v in inputs.values() if isinstance(v, list)}}
    (options,) = of_kind(prompt, "ContinualLoRA_TrainOptions")
    prompt[options]["inputs"] |= {"sample_every": 2, "sample_prompt": "photo of a <{token}> {class_noun}"}
    prompt["train"] = {"class_type": "ContinualLoRA_Train", "inputs": inputs}
    received = asyncio.run(asyncio.wait_for(binary_messages(client, prompt), 240))
    headers = [(int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")) for data in received]
    shown = [
        Image.open(io.BytesIO(data[8:]))
        for data, head in zip(received, headers, strict=True)
        if head == (PREVIEW, JPEG)
    ]
    files = sorted((sequence_folder(server, "shown") / "samples").glob("*/*.png"))
    assert [file.name for file in files] == ["step_000002.png", "step_000004.png", "step_000005.png"]
    assert [picture.size for picture in shown] == [(512, 512)] * 3  # the host enlarges them
    for picture, file in zip(shown, files, strict=True):
        kept = Image.open(file).convert("RGB")
        pairs = zip(picture.convert("RGB").resize(kept.size).tobytes(), kept.tobytes(), strict=True)
        assert sum(abs(one - other) for one, other in pairs) / (64 * 64 * 3) < 16  # but for the JPEG
        assert len(kept.getcolors(4096) or range(4096)) > 16
