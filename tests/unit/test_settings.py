"""Every setting: its default inside its limits, its limits enforced, its help there."""

import math
from dataclasses import FrozenInstanceError, fields

import pytest

from trainer.errors import ContinualLoraError
from trainer.settings import TrainSettings

FIELDS = {item.name: item for item in fields(TrainSettings)}
RANGES = [name for name, item in FIELDS.items() if "minimum" in item.metadata]
CHOICES = [name for name, item in FIELDS.items() if "choices" in item.metadata]


def just_outside(name):
    limits, kind = FIELDS[name].metadata, type(FIELDS[name].default)
    if kind is int:
        return limits["minimum"] - 1, limits["maximum"] + 1
    return limits["minimum"] - 1e-6, limits["maximum"] * (1 + 1e-9) + 1e-9, math.nan, math.inf


def test_every_number_has_limits_and_every_setting_its_help():
    numbers = {name for name, item in FIELDS.items() if type(item.default) in (int, float)}
    assert (
        set(RANGES) == numbers
        and len(RANGES) >= 16
        and set(CHOICES) == {"adapter", "fisher_space", "schedule", "mixed_precision", "optimizer"}
    )
    for item in FIELDS.values():
        assert item.metadata["help"].endswith("."), item.name
    simple = [name for name, item in FIELDS.items() if not item.metadata.get("advanced")]
    assert simple == ["recipe", "steps", "rank", "learning_rate", "penalty_weight", "seed"]


@pytest.mark.parametrize("name", RANGES)
def test_limits_are_enforced_with_three_facts(name):
    limits = FIELDS[name].metadata
    for value in (limits["minimum"], limits["maximum"]):
        assert getattr(TrainSettings(**{name: value}), name) == value
    for value in just_outside(name):
        with pytest.raises(ContinualLoraError) as caught:
            TrainSettings(**{name: value})
        text = str(caught.value)
        assert text.startswith(f'"{name}" should lie between {limits["minimum"]} and {limits["maximum"]}.')
        assert f"It is {value}." in text and text.endswith("Set it to a value in this range.")


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_enforced(name):
    for value in FIELDS[name].metadata["choices"]:
        assert getattr(TrainSettings(**{name: value}), name) == value
    with pytest.raises(ContinualLoraError, match=f'"{name}" should be one of .* It is `other`. Choose one of them.'):
        TrainSettings(**{name: "other"})


def test_resolution_is_a_multiple_of_eight():
    assert TrainSettings(resolution=64).resolution == 64
    with pytest.raises(ContinualLoraError, match=r'"resolution" should be a multiple of 8\. It is 60\.'):
        TrainSettings(resolution=60)


def test_alpha_zero_means_the_rank():
    assert TrainSettings(rank=4).effective_alpha == 4.0 and TrainSettings(rank=4, alpha=1.5).effective_alpha == 1.5


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        TrainSettings().steps = 5
