"""Pictures of a running training: on a host's model against the host's own sampler, and in the node."""

import io
from pathlib import Path

from PIL import Image

from tests.server import Client, Server

from .checkpoint import build_checkpoint
from .inside import run_inside
from .test_training_course import only_training, watch
from .test_workflows import load, of_kind, sequence_folder

ROOT = Path(__file__).parents[2]


def test_the_last_picture_is_what_the_host_draws_with_the_finished_task(comfy_path: Path, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(comfy_path, "sd15", ROOT / "build" / "checkpoints")
    found = run_inside("live_samples.py", comfy_path, tmp_path, checkpoint)
    rounding = 0.01 if found["device"] == "cpu" else 0.05  # a GPU computes in 16 bits: 0.029 on an H100
    assert found["difference"] < rounding < min(found["spread"], found["difference of the steps"]), found
    assert found["same task"] and found["same modules"] and found["moved"] == [], found
    shape, spread, decoded = found["rough"]
    assert shape == [3, 64, 64] and spread > 0.01 and decoded == 0, found


def test_the_node_shows_them_and_keeps_them(client: Client, server: Server) -> None:
    quickstart = load(client, "quickstart_cpu")
    inputs = {"sequence_name": "shown", "steps": 5, "rank": 2, "recipe": "lora"}
    prompt = only_training(quickstart, inputs)
    (options,) = of_kind(prompt, "ContinualLoRA_TrainOptions")
    prompt[options]["inputs"] |= {"sample_every": 2, "sample_prompt": "photo of a <{token}> {class_noun}"}
    told = watch(client, prompt, "pictures")
    files = sorted((sequence_folder(server, "shown") / "samples").glob("*/*.png"))
    assert [file.name for file in files] == ["step_000002.png", "step_000004.png", "step_000005.png"]
    assert sorted({news["picture"] for news in told} - {None}) == [2, 4, 5]
    address = "/continual_lora/training/picture?workflow=pictures&node=train"
    pictures = (client.fetch(address), files[-1].read_bytes())
    shown, kept = (Image.open(io.BytesIO(data)).convert("RGB") for data in pictures)
    assert shown.size == kept.size == (64, 64) and shown.tobytes() == kept.tobytes()
    assert len(kept.getcolors(4096) or range(4096)) > 16
