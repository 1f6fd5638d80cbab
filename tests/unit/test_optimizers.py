"""The optimizers: each learns, is resumed to the bit, and says before training what it lacks."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.toy import ToyBase, toy_concept, toy_settings
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.settings import TrainSettings
from trainer.teach import teach
from trainer.training.optimizers import LEAST_8BIT, OPTIMIZERS, build_optimizer, check_optimizer, set_training

RATES = {
    "adamw": {},
    "adamw8bit": {},
    "prodigy": {"learning_rate": 1.0, "token_learning_rate": 1.0},
    "adamw_schedulefree": {"learning_rate": 0.05, "token_learning_rate": 0.05},
}


class StopError(Exception):
    pass


def taught(root, settings, stop_at=0, open_base=ToyBase, when_stopped=lambda: None):
    """Two concepts, the second stopped after a step and gone on with; its tensors by file."""
    line = ConceptSequence.create(root, open_base().fingerprint)
    line = teach(open_base(), toy_concept("one", seed=1), settings, line)

    def stop(record):
        if (record.phase, record.step) == ("train", stop_at):
            raise StopError

    if stop_at:
        with pytest.raises(StopError):
            teach(open_base(), toy_concept("two", seed=2), settings, line, stop)
        when_stopped()
    line = teach(open_base(), toy_concept("two", seed=2), settings, line)
    return {path.name: load_file(path) for path in line.folder(line.tasks[-1]).rglob("*.safetensors")}


def equal(these, those):
    """Whether the same files hold the same tensors to the bit."""
    return these.keys() == those.keys() and all(
        tensors.keys() == those[file].keys()
        and all(torch.equal(value, those[file][key]) for key, value in tensors.items())
        for file, tensors in these.items()
    )


@pytest.mark.parametrize("stop_at", [3, 8], ids=["in the middle", "after the last step"])
@pytest.mark.parametrize("name", RATES)
def test_a_training_goes_on_to_the_bit(name, stop_at, tmp_path):
    settings = toy_settings(recipe="lora_dsc", steps=8, optimizer=name, consolidation=0.5, **RATES[name])
    whole, resumed = taught(tmp_path / "a", settings), taught(tmp_path / "b", settings, stop_at)
    assert equal(whole, resumed) and len(whole) >= 2


@pytest.mark.parametrize("name", RATES)
def test_each_finds_the_bottom_of_a_bowl(name):
    """Sum (x - 3)^2 from 0: the steps and the switch to the result are those of the optimizer's package."""
    parameter = torch.nn.Parameter(torch.full((LEAST_8BIT,), 0.5))
    rate = {"adamw": 0.05, "adamw8bit": 0.05, "prodigy": 1.0, "adamw_schedulefree": 0.2}[name]
    optimizer = build_optimizer(name, [{"params": [parameter], "lr": rate, "weight_decay": 0.0}])
    set_training(optimizer, True)
    for _ in range(300):
        optimizer.zero_grad()
        (parameter - 3).square().sum().backward()
        optimizer.step()
    set_training(optimizer, False)
    assert (parameter - 3).abs().max() < 0.2


def test_moments_in_8_bits_are_resumed_to_the_bit(tmp_path, random_tiny_folder):
    """Factors of rank 32 are large enough for 8 bits, those of the toy are not."""
    settings = toy_settings(recipe="lora", optimizer="adamw8bit", rank=32)

    def open_base():
        return TinyBase(random_tiny_folder)

    def in_8_bits():
        (partial,) = (tmp_path / "b" / "partial").glob("*.safetensors")
        moments = [tensor for name, tensor in load_file(partial).items() if name.startswith("optimizer.state1.")]
        assert torch.uint8 in {tensor.dtype for tensor in moments}

    whole = taught(tmp_path / "a", settings, open_base=open_base)
    assert equal(whole, taught(tmp_path / "b", settings, 2, open_base, in_8_bits))
    assert not equal(whole, taught(tmp_path / "c", replace(settings, optimizer="adamw"), open_base=open_base))


def test_a_device_without_8_bit_steps_is_said_before_training(monkeypatch):
    def step(self):
        raise NotImplementedError("no 8-bit steps here")

    monkeypatch.setattr("bitsandbytes.optim.AdamW8bit.step", step)
    with pytest.raises(ContinualLoraError, match=r"make a step.* cpu\. The installed.*no 8-bit steps here.*--upgrade"):
        check_optimizer(TrainSettings(optimizer="adamw8bit"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"optimizer": "prodigy"}, ("should be equal", "0.0002 and 0.001", "Set both to 1")),
        ({"optimizer": "adamw_schedulefree", "schedule": "cosine"}, ("constant", "cosine and 0", "adamw")),
    ],
)
def test_what_an_optimizer_cannot_do_is_said_before_training(changes, facts):
    with pytest.raises(ContinualLoraError) as caught:
        check_optimizer(TrainSettings(**changes), torch.device("cpu"))
    assert all(fact in str(caught.value) for fact in facts)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "prodigy", ("no_such_module", "Prodigy", "prodigyopt"))
    with pytest.raises(ContinualLoraError, match='package "prodigyopt"'):
        check_optimizer(TrainSettings(optimizer="prodigy"), torch.device("cpu"))
