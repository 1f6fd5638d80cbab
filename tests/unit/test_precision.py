"""fp16 with a scaled loss: what overflows is left out, what does not is the gradient of fp32, and it resumes."""

import math

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.adapters.lora import LoraAdapter
from trainer.denoiser import Conditioning
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.loop import train_concept
from trainer.methods.method import Method
from trainer.teach import teach
from trainer.training.buckets import Bucket
from trainer.training.precision import FIRST_SCALE, autocast, check_precision, unscaled
from trainer.training.state import TrainState

LATENTS = torch.tensor([[0.5, -1.0], [1.5, 0.25], [-0.75, 2.0]]).view(3, 1, 1, 2)
UNET = ToyUNet().requires_grad_(False)


class Cancel(BaseException):
    pass


class Steep(Method):
    """A penalty whose gradient is infinite, whatever it is scaled by."""

    def penalty(self, adapter):
        total = sum(value.sum() for value in adapter.parameters.values())
        return (total - total.detach()).abs().sqrt()


class Training:
    def __init__(self, methods=(), **changes):
        self.base = ToyBase(UNET)
        self.settings = toy_settings(**{"mixed_precision": "fp16", "steps": 8, **changes})
        adapter = LoraAdapter(self.base.unet, 2, 2.0, torch.Generator().manual_seed(0))
        self.state = TrainState(adapter, self.base.word_vectors("animal"), self.settings)
        self.methods = methods

    def encode(self, indices, rng):
        tokens = {"fox": {**self.state.token}}
        return Conditioning.cat([self.base.encode_prompt("photo of a <fox> animal", tokens) for _ in indices])

    def steps(self):
        parts = (self.base, [Bucket(LATENTS)], self.encode, self.state, self.methods, self.settings, "0/1")
        return train_concept(*parts)

    def theta(self):
        return {name: value.detach().clone() for name, value in self.state.parameters.items()}

    def start_at(self, scale):
        self.state.scaler.load_state_dict({**self.state.scaler.state_dict(), "scale": scale})


@pytest.mark.parametrize(("mixed_precision", "expected"), [("fp16", False), ("bf16", True), ("no", False)])
def test_prompts_are_never_encoded_in_fp16(mixed_precision, expected):
    """T5 overflows in it."""
    training, seen = Training(mixed_precision=mixed_precision, steps=2), []
    original = training.base.encode_prompt

    def encode_prompt(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(*args)

    training.base.encode_prompt = encode_prompt
    list(training.steps())
    assert seen and set(seen) == {expected}


def test_a_step_that_overflows_is_left_out_and_counted():
    training = Training()
    training.start_at(2.0**40)  # far beyond what fp16 holds
    before, steps = training.theta(), training.steps()
    record = next(steps)
    assert all(torch.equal(value, before[name]) for name, value in training.theta().items())
    assert not any(training.state.optimizer.state[p] for p in training.state.parameters.values())
    assert record.step == training.state.step == 1 and math.isfinite(record.loss) and training.state.whole
    assert record.values["loss_scale"] == 2.0**39 and training.state.scales == [2.0**39]


def test_the_scale_falls_until_steps_fit_and_stays():
    training = Training(steps=40)
    training.start_at(2.0**30)
    start = training.theta()
    scales = [record.values["loss_scale"] for record in training.steps()]
    skipped = sum(after < before for before, after in zip([2.0**30, *scales], scales, strict=False))
    assert 10 < skipped < 30 and scales == sorted(scales, reverse=True) and scales[-1] == 2.0 ** (30 - skipped)
    assert any(not torch.equal(value, start[name]) for name, value in training.theta().items())


def test_skipped_steps_are_those_that_lower_the_scale():
    training = Training()
    training.state.scales = [FIRST_SCALE / 2, FIRST_SCALE / 4, FIRST_SCALE / 4, FIRST_SCALE / 2, FIRST_SCALE / 4]
    assert training.state.skipped_steps == 3


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation": 2}])
def test_the_gradient_is_that_of_fp32_whatever_the_scale(changes):
    """Clipped after it was scaled back: a clip of the scaled gradient would be another one."""
    plain, gradients = Training(mixed_precision="no", gradient_clip=0.05, **changes), []
    next(plain.steps())
    for scale in (1.0, 64.0, 4096.0):
        training = Training(gradient_clip=0.05, **changes)
        training.start_at(scale)
        next(training.steps())
        gradients.append({name: value.grad.clone() for name, value in training.state.parameters.items()})
    for found in gradients:
        for name, value in plain.state.parameters.items():
            torch.testing.assert_close(found[name], value.grad, rtol=2e-2, atol=2e-4)


def test_a_loss_that_is_no_number_stops_at_once():
    training = Training()
    training.base.unet.middle_block[1].attn2.to_v.base_layer.weight.data = torch.full((2, 3), torch.inf)
    before = training.theta()
    with pytest.raises(ContinualLoraError, match=r"The loss should be a number\. .* at step 1 of 8"):
        next(training.steps())
    assert all(torch.equal(value, before[name]) for name, value in training.theta().items())


def test_a_gradient_that_no_scale_makes_a_number_stops_in_the_end():
    training = Training([Steep(toy_settings())], steps=100)
    before = training.theta()
    with pytest.raises(ContinualLoraError, match=r"The gradient should be a number\. .* at step 17 of 100"):
        list(training.steps())
    assert training.state.skipped_steps == training.state.step == 16  # from 2^16 to 1
    assert all(torch.equal(value, before[name]) for name, value in training.theta().items())


def test_cancelled_and_resumed_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.planning.check_precision", lambda *_: None)  # torch scales on the CPU as well
    settings = toy_settings(recipe="lora", steps=8, mixed_precision="fp16")

    def run(root, stop=0):
        def on_step(record):
            if record.step == stop:
                raise Cancel

        base = ToyBase(UNET)
        return teach(base, toy_concept("fox"), settings, ConceptSequence(root, base.fingerprint), on_step)

    whole = run(tmp_path / "whole")
    with pytest.raises(Cancel):
        run(tmp_path / "cut", stop=3)
    run(tmp_path / "cut")
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")
    (task,) = whole.tasks
    assert len(whole.log(task)["loss_scale"]) == len(whole.log(task)["loss"]) == 8
    assert task.values["skipped_steps"] == sum(value < FIRST_SCALE for value in set(whole.log(task)["loss_scale"]))


@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_every_phase_computes_in_the_format_of_the_training(mixed_precision, tmp_path):
    settings = toy_settings(recipe="lora_dsc_ewc_dc", steps=4, num_prompts=3, mixed_precision=mixed_precision)
    since_last, seen = [], {}

    def on_predict(_):
        since_last.append(torch.is_autocast_enabled("cpu"))

    def on_step(record):
        assert not torch.is_autocast_enabled("cpu")
        seen.setdefault(record.phase, set()).update(since_last)
        since_last.clear()

    sequence = ConceptSequence(tmp_path, ToyBase(UNET).fingerprint)
    for name in ("fox", "cat"):
        base = ToyBase(UNET, on_predict=on_predict)
        sequence = teach(base, toy_concept(name), settings, sequence, on_step)
    assert seen == {phase: {mixed_precision == "bf16"} for phase in ("train", "consolidate", "fisher")}
    assert all(value.dtype == torch.float32 for value in sequence.method_state().values())


def test_the_fisher_in_bf16_is_that_of_fp32_but_for_rounding(tmp_path):
    fishers = []
    for mixed_precision in ("no", "bf16"):
        # It does not move from where it starts, so that both weigh the same parameters.
        settings = toy_settings(recipe="lora_ewc", learning_rate=1e-9, fisher_draws=64, mixed_precision=mixed_precision)
        base = ToyBase(UNET)
        sequence = ConceptSequence(tmp_path / mixed_precision, base.fingerprint)
        state = teach(base, toy_concept("fox"), settings, sequence).method_state()
        fishers.append(torch.cat([value.flatten() for name, value in state.items() if ".fisher." in name]))
    plain, rounded = fishers
    assert not torch.equal(plain, rounded)
    assert (plain - rounded).norm() < 0.02 * plain.norm()


@pytest.mark.parametrize(("mixed_precision", "kept"), [("no", True), ("auto", True), ("fp16", True), ("bf16", False)])
def test_passes_without_a_scaled_loss_are_never_in_fp16(mixed_precision, kept):
    base = ToyBase(UNET)
    assert (unscaled(base, mixed_precision) is base) == kept


def test_the_scaler_goes_on_counting_where_it_was():
    one, other = Training(), Training()
    steps = one.steps()
    for _ in range(5):
        next(steps)
    other.state.load_state_dict({name: value.clone() for name, value in one.state.state_dict().items()})
    assert other.state.scaler.state_dict() == one.state.scaler.state_dict()
    assert one.state.scaler.state_dict()["_growth_tracker"] > 0


def test_only_on_cuda():
    check_precision("fp16", torch.device("cuda"))
    check_precision("bf16", torch.device("cpu"))
    with pytest.raises(ContinualLoraError, match=r"CUDA GPU\. This model is on cpu\. Set"):
        check_precision("fp16", torch.device("cpu"))
    with autocast("fp16", torch.device("cpu")):
        assert torch.get_autocast_dtype("cpu") == torch.float16
