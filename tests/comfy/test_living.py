"""A training on a MODEL that the host holds in any of its ways, and what it leaves behind."""

from pathlib import Path
from typing import Any

import pytest

from .checkpoint import build_checkpoint
from .inside import run_inside

ROOT = Path(__file__).parents[2]
KINDS = ["plain", "fp8", "packed", "scaled"]


@pytest.fixture(scope="module")
def found(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Kind of MODEL -> what living.py found out; see there for how --lowvram and --novram come to a CPU."""
    checkpoint = build_checkpoint(comfy_path, "sd15", ROOT / "build" / "checkpoints")
    return run_inside("living.py", comfy_path, tmp_path_factory.mktemp("living"), checkpoint)


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind} with LoRA" for kind in KINDS)])
def test_it_is_trained_as_an_ordinary_model_of_the_same_weights(kind: str, found: dict[str, Any]) -> None:
    whole, lowvram, novram = found[kind]["loaded"]
    assert whole == 1 and 0.1 < lowvram < 0.9 and novram < 0.01  # how much it is depends on the host
    # On weights of 8 bits the host rounds a LoRA at random where it loads them; lazily put on, it is not rounded. An
    # older host rounds it always on weights with scales, and cuts it off at the largest: there is nothing exact then.
    rounded = found[kind]["LoRAs rounded"]
    inexact = {"never": 0, "loaded": 2, "always": 3}[rounded] if "with LoRA" in kind else 0
    assert max(found[kind]["gradients"][inexact:], default=0) < 1e-5
    before, after = found[kind]["error"]
    assert after < 0.95 * before
    moved = found[kind]["moved"]
    assert found[kind]["core LoRA against ours"] < (0.5 * moved if rounded == "always" else 1e-4)
    assert moved > 1e-2
    assert found[kind]["unchanged"]


def test_autograd_keeps_no_weights_that_were_made_for_a_call(found: dict[str, Any]) -> None:
    """So that training a model that is offloaded, in 8 bits or packed takes the room of its own weights only."""
    plain = found["plain"]["kept"][0]
    for findings in found.values():
        assert max(findings["kept"]) <= 1.01 * plain


def test_one_model_has_one_fingerprint_however_much_is_loaded(found: dict[str, Any]) -> None:
    names = [set(findings["fingerprints"]) for findings in found.values()]
    assert all(len(own) == 1 for own in names)
    assert len(set.union(*names)) == len(found)  # the LoRA makes another base, and so does rounding


ENDINGS = ["success", "error", "interrupt", "memory"]


@pytest.fixture(scope="module")
def endings(comfy_path: Path, random_tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ending -> what endings.py found."""
    return run_inside("endings.py", comfy_path, tmp_path_factory.mktemp("endings"), random_tiny_folder)


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_stays_behind(ending: str, endings: dict[str, Any]) -> None:
    left = endings[ending]
    assert (
        left["raised"]
        == {
            "success": "",
            "error": "RuntimeError",
            "interrupt": "InterruptProcessingException",
            "memory": "ContinualLoraError",  # says what to change
        }[ending]
    )
    assert left["steps"] >= 2
    assert left["state"] == "the same" and left["picture"] == "the same"
    assert left["loaded"] == left["loaded before"]
    assert left["views alive"] == 0
    assert left["torch"] == {"gradients": False, "inference": True, "autocast": False}
