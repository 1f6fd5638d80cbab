"""Pictures of a running training on a host's model, against the host's own LoRA loader and sampler."""

from pathlib import Path

from .checkpoint import build_checkpoint
from .inside import run_inside

ROOT = Path(__file__).parents[2]


def test_the_last_picture_is_what_the_host_draws_with_the_finished_task(comfy_path: Path, tmp_path: Path) -> None:
    checkpoint = build_checkpoint(comfy_path, "sd15", ROOT / "build" / "checkpoints")
    found = run_inside("live_samples.py", comfy_path, tmp_path, checkpoint)
    assert found["difference"] < 0.01 < min(found["spread"], found["difference of the steps"]), found
    assert found["same task"] and found["same modules"] and found["moved"] == [], found
    shape, spread, decoded = found["rough"]
    assert shape == [3, 64, 64] and spread > 0.01 and decoded == 0, found
