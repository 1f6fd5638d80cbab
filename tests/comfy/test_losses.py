"""The loss on the host's models, against a computation that shares none of our code."""

from pathlib import Path

import pytest

from .checkpoint import build_checkpoint
from .inside import run_inside

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("family", "parameterization"), [("sd15", "eps"), ("sd2_v", "v"), ("sdxl", "eps")])
def test_noise_and_loss_are_those_of_the_host(
    comfy_path: Path, family: str, parameterization: str, tmp_path: Path
) -> None:
    checkpoint = build_checkpoint(comfy_path, family, ROOT / "build" / "checkpoints")
    found = run_inside("loss_parity.py", comfy_path, tmp_path, checkpoint)
    assert found["parameterization"] == parameterization
    assert max(found["x_t"], found["x_t of the host"], found["target"]) < 1e-5, found
    assert found["errors"] == pytest.approx(found["errors by hand"], rel=1e-5), found
    assert min(found["errors"]) > 0.1  # random weights predict neither noise nor v
