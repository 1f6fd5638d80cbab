"""On a GPU the host moves models in and out; whatever mode we are in then, they stay usable."""

from pathlib import Path

import pytest

from .inside import run_inside


def test_models_survive_being_moved(
    comfy_path: Path, random_tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = run_inside("moved.py", comfy_path, tmp_path_factory.mktemp("moved"), random_tiny_folder)
    assert found and found == dict.fromkeys(found, ""), found
