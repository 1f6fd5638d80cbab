"""A training on a MODEL of a file with scales, in every format that the host reads; see also test_living.py."""

from pathlib import Path
from typing import Any

import pytest

from .checkpoint import build_checkpoint
from .inside import run_inside

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What scaled.py found."""
    checkpoint = build_checkpoint(comfy_path, "sd3", ROOT / "build" / "checkpoints")
    return run_inside("scaled.py", comfy_path, tmp_path_factory.mktemp("scaled"), checkpoint)


def test_gradients_are_those_of_the_unpacked_weights_in_every_format_of_the_host(found: dict[str, Any]) -> None:
    formats = {name: findings for name, findings in found.items() if name != "refusal"}
    # All that 0.3.75 has; 0.28.0 has e5m2, nvfp4, mxfp8 and two of integers as well.
    assert {"fast", "float8_e4m3fn"} <= formats.keys()
    for name, findings in formats.items():
        assert findings["layers"] >= 3, name
        exact, in_bf16 = findings["differences"]
        # The host may unpack into bf16, scale and product rounded, where the reference is rounded once: 2^-8 each.
        assert exact < 1e-5 and in_bf16 < 0.05, (name, findings)
        for own, plain in findings["kept"]:
            assert own <= 1.01 * plain, (name, findings)
        assert findings["unchanged"], name


def test_layers_that_multiply_in_fp8_whatever_is_asked_of_them_are_refused(found: dict[str, Any]) -> None:
    older = set(found) == {"refusal", "fast", "float8_e4m3fn"}  # newer hosts turn the older layout into their own
    assert found["refusal"].startswith("The layers of MODEL should multiply in") == older
    assert older or found["refusal"] == ""
