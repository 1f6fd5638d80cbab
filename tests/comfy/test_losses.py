"""The loss on the host's models, against a computation that shares none of our code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .checkpoint import build_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("family", "parameterization"), [("sd15", "eps"), ("sd2_v", "v"), ("sdxl", "eps")])
def test_noise_and_loss_are_those_of_the_host(
    comfy_path: Path, family: str, parameterization: str, tmp_path: Path
) -> None:
    checkpoint = build_checkpoint(comfy_path, family, ROOT / "build" / "checkpoints")
    (tmp_path / "continual_lora").symlink_to(ROOT, target_is_directory=True)
    script = Path(__file__).with_name("loss_parity.py")
    command = [sys.executable, str(script), str(comfy_path), str(tmp_path), str(checkpoint)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameterization"] == parameterization
    assert max(found["x_t"], found["x_t of the host"], found["target"]) < 1e-5, found
    assert found["errors"] == pytest.approx(found["errors by hand"], rel=1e-5), found
    assert min(found["errors"]) > 0.1  # random weights predict neither noise nor v
