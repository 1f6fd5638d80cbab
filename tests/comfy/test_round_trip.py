"""What was trained on a checkpoint is what the core makes of its files, for every family."""

from pathlib import Path

import pytest

from .checkpoint import build_checkpoint
from .inside import run_inside

ROOT = Path(__file__).parents[2]
# The text encoders that a token gets a vector in, and its width.
ENCODERS = {
    "sd15": {"clip_l": 768},
    "sd2_v": {"clip_h": 1024},
    "sdxl": {"clip_l": 768, "clip_g": 1280},
    "sd3": {"clip_l": 768, "clip_g": 1280},
    "flux": {"clip_l": 768, "t5xxl": 4096},
}


@pytest.mark.parametrize("family", ENCODERS)
def test_the_core_loads_what_was_trained_and_predicts_the_same(comfy_path: Path, family: str, tmp_path: Path) -> None:
    """Also from the layouts of other tools, with the token as `embedding:`, and as the start of a sequence."""
    checkpoint = build_checkpoint(comfy_path, family, ROOT / "build" / "checkpoints")
    found = run_inside("round_trip.py", comfy_path, tmp_path, checkpoint)
    assert found["embedding"] == {name: [1, width] for name, width in ENCODERS[family].items()}
    assert found["complaints"] == []
    joint = {"diffusers"} if family in ("sd3", "flux") else set()
    assert set(found["differences"]) == {"the file", "kohya", "comfyui", "a sequence from it"} | joint
    difference = max(found["differences"].values())
    assert difference < 2e-5 and difference < 1e-4 * found["change"], found  # seen: 1e-6 of the change, and of SD3 1e-5
    for name, other in found["other adapters"].items():
        assert other["difference"] < 1e-4 * other["change"], (name, other)
    assert family != "sd15" or {"vera", "full", "fresh_lora"} == set(found["other adapters"])
    assert found["penalty"][0] == 0 < found["penalty"][-1]  # the anchor is where the second concept starts
