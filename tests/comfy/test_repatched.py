"""A MODEL that the user gave another kind of sampling is trained in that, or refused."""

import re
from pathlib import Path

import pytest

from .inside import run_inside

KINDS = {
    "none": "eps",
    "eps": "eps",
    "v_prediction": "v",
    "v_prediction, zsnr": "v",
    "flow": "flow",
    "none again": "eps",
}
REFUSED = {"lcm", "x0", "img_to_img", "continuous v_prediction", "continuous eps"}


def test_the_loss_is_that_of_the_sampling_on_the_model(
    comfy_path: Path, random_tiny_folder: Path, tmp_path: Path
) -> None:
    found = run_inside("repatched.py", comfy_path, tmp_path, random_tiny_folder)
    assert set(found) == set(KINDS) | REFUSED
    for name, parameterization in KINDS.items():
        own = found[name]
        assert own["parameterization"] == parameterization, (name, own)
        assert max(own["x_t"], own["x_t of the host"], own["target"]) < 1e-5, (name, own)
        assert own["errors"] == pytest.approx(own["errors by hand"], rel=1e-4), (name, own)
    # Only what differs from the checkpoint's own makes another task.
    names = {name: found[name]["sampling"] for name in KINDS}
    assert {name for name in KINDS if not names[name]} == {"none", "eps", "none again"} and len({*names.values()}) == 4
    assert found["v_prediction, zsnr"]["sigma"][-1] > found["v_prediction"]["sigma"][-1]
    for name in REFUSED:
        facts = r"MODEL should be sampled by .* another kind of sampling on it: \w+, \w+\. Take that node .* away\."
        assert re.fullmatch(facts, found[name]), (name, found[name])
