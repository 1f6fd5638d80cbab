"""Logs for TensorBoard, read back with its own reader."""

import sys

import pytest

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)


class Cancel(BaseException):
    pass


def run(root, on_step=lambda record: None, **changes):
    settings = toy_settings(**{"recipe": "lora_ewc", "tensorboard": True, "validation_every": 2, **changes})
    base = ToyBase(UNET)
    return teach(base, toy_concept("fox"), settings, ConceptSequence(root, base.fingerprint), on_step)


def curves(done):
    """Name of each curve -> its (step, value) pairs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(done.root / "tensorboard" / done.tasks[0].folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_the_curves_are_the_log(tmp_path):
    records = []
    done = run(tmp_path, records.append)
    found, log = curves(done), done.log(done.tasks[0])
    assert found["train/loss"] == [(i, pytest.approx(value)) for i, value in enumerate(log["loss"], start=1)]
    after = list(zip(log["validation_step"], log["validation_loss"], strict=True))[1:]  # 0 is before the first record
    assert found["train/validation_loss"] == [(step, pytest.approx(value)) for step, value in after]
    fisher = [record for record in records if record.phase == "fisher"]
    assert found["fisher/loss"] == [(record.step, pytest.approx(record.loss)) for record in fisher]
    assert found["fisher/fisher_trace"] == [(fisher[-1].step, pytest.approx(fisher[-1].values["fisher_trace"]))]


def test_a_resumed_training_goes_on_with_its_curves(tmp_path):
    whole = run(tmp_path / "whole", steps=6)

    def stop(record):
        if record.step == 4:
            raise Cancel

    with pytest.raises(Cancel):
        run(tmp_path / "cut", stop, steps=6, checkpoint_every=100)
    cut = run(tmp_path / "cut", steps=6, checkpoint_every=100)
    assert curves(cut) == curves(whole)


def test_the_task_is_the_same_with_and_without(tmp_path):
    one, other = run(tmp_path / "one"), run(tmp_path / "other", tensorboard=False)
    assert one.head == other.head
    assert files_below(one.folder(one.tasks[0])) == files_below(other.folder(other.tasks[0]))
    assert not (other.root / "tensorboard").exists()


def test_a_missing_package_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(
        ContinualLoraError, match=r'package "tensorboard"\. It cannot .* Run `python -m pip install ten'
    ):
        run(tmp_path)
    assert not list(tmp_path.iterdir())
