"""The loss on the host's models, against a computation that shares none of our code."""

import math
from pathlib import Path

import pytest

from .checkpoint import build_checkpoint
from .inside import run_inside

ROOT = Path(__file__).parents[2]


# The noise at t = 10, 500, 950 of a flow, shifted by s = 3 in SD3 and by exp(1.15) in Flux: s f / (1 + (s - 1) f).
SHIFTED = {
    family: [shift * f / (1 + (shift - 1) * f) for f in (0.011, 0.501, 0.951)]
    for family, shift in (("sd3", 3.0), ("flux", math.exp(1.15)))
}
FAMILIES = [("sd15", "eps"), ("sd2_v", "v"), ("sdxl", "eps"), ("sd3", "flow"), ("flux", "flow")]


@pytest.mark.parametrize(("family", "parameterization"), FAMILIES)
def test_noise_and_loss_are_those_of_the_host(
    comfy_path: Path, family: str, parameterization: str, tmp_path: Path
) -> None:
    checkpoint = build_checkpoint(comfy_path, family, ROOT / "build" / "checkpoints")
    found = run_inside("loss_parity.py", comfy_path, tmp_path, checkpoint)
    assert found["parameterization"] == parameterization
    assert max(found["x_t"], found["x_t of the host"], found["target"]) < 1e-5, found
    assert found["errors"] == pytest.approx(found["errors by hand"], rel=1e-5), found
    assert found["sigma"] == pytest.approx(SHIFTED.get(family, found["sigma"]), rel=1e-5)
    assert found["host attends in chunks"]  # as it does on a CPU; a training never does
    assert min(found["errors"]) > 0.1  # random weights predict neither noise nor v nor flow
    # Weights held in bf16 are not cast to the host's format and back where the training computes in bf16.
    assert found["formats"] == ["torch.bfloat16", found["format of the host"]] and "32" in found["format of the host"]
    for name in ("errors in bf16", "errors in host's format"):
        assert found[name] == pytest.approx(found["errors"], rel=0.03), found
