"""fp16 with a scaled loss: what overflows is left out, what does not is the gradient of fp32, and it resumes."""

import math

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings, trained_task
from trainer.adapters.lora import LoraAdapter
from trainer.denoiser import Conditioning
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.loop import train_concept
from trainer.losses.fisher import sum_of_squares
from trainer.methods.dsc import DSC
from trainer.methods.ewc import EWC
from trainer.methods.method import Method
from trainer.teach import teach
from trainer.training.buckets import Bucket
from trainer.training.precision import FIRST_SCALE, check_precision, in_format, loss_scaler, number_format
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
        self.settings = toy_settings(**{"mixed_precision": "fp16", "steps": 8, **changes})
        self.base = in_format(ToyBase(UNET), self.settings.mixed_precision)
        adapter = LoraAdapter(self.base.unet, 2, 2.0, torch.Generator().manual_seed(0))
        scaler = loss_scaler(self.base, self.settings.mixed_precision)
        self.state = TrainState(adapter, self.base.word_vectors("animal"), self.settings, scaler)
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

    class Base(ToyBase):
        def encode_prompt(self, *args):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().encode_prompt(*args)

    seen = []
    in_format(Base(), mixed_precision).encode_prompt("photo of a fox", {})
    assert seen == [expected]


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


FORMATS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("mixed_precision", FORMATS)
def test_every_phase_computes_in_the_format_of_the_training(mixed_precision, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.planning.check_precision", lambda *_: None)
    settings = toy_settings(recipe="lora_dsc_ewc_dc", steps=4, num_prompts=3, mixed_precision=mixed_precision)
    since_last, seen = [], {}

    def on_predict(_):
        since_last.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    def on_step(record):
        assert not torch.is_autocast_enabled("cpu")
        seen.setdefault(record.phase, set()).update(since_last)
        since_last.clear()

    sequence = ConceptSequence(tmp_path, ToyBase(UNET).fingerprint)
    for name in ("fox", "cat"):
        base = ToyBase(UNET, on_predict=on_predict)
        sequence = teach(base, toy_concept(name), settings, sequence, on_step)
    assert seen == {phase: {FORMATS[mixed_precision]} for phase in ("train", "consolidate", "fisher")}
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


class Faint(ToyBase):
    """A base whose gradients are as small as those of a mean over many numbers; fp16 rounds or loses them."""

    def predict(self, x_t, t, conditioning):
        prediction = super().predict(x_t, t, conditioning).float()
        return prediction.detach() + 1e-7 * (prediction - prediction.detach())


def scaler_at(scale):
    return torch.amp.GradScaler("cpu", scale)


def fisher(base, mixed_precision, scaler, classifier):
    task = trained_task(in_format(base, mixed_precision), scaler=scaler)
    ewc = EWC(toy_settings(fisher_draws=6, temperature=0.5), classifier=classifier)
    squares = [sum_of_squares(gradients) for gradients in ewc.gradients(task, 6)]
    return torch.cat([sum(s[name] for s in squares).sqrt().flatten() for name in squares[0]])


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("classifier", [False, True])
def test_the_fisher_in_fp16_is_that_of_fp32_whatever_the_scale_was(classifier):
    plain = fisher(Faint(), "no", scaler_at(1.0), classifier)
    assert float(plain.norm()) > 0
    for scale in (FIRST_SCALE, 2.0**60):  # the latter overflows, again and again
        assert off(fisher(Faint(), "fp16", scaler_at(scale), classifier), plain) < 0.01
    assert off(fisher(Faint(), "fp16", scaler_at(1.0), classifier), plain) > 0.05


def test_a_draw_that_overflows_near_scale_one_is_made_again_at_one():
    class OverflowsOnce(ToyBase):
        def predict(self, x_t, t, conditioning):
            prediction = super().predict(x_t, t, conditioning).float()
            return prediction.detach() + (1e9 if self.passes == 1 else 1) * (prediction - prediction.detach())

    plain = fisher(ToyBase(), "no", scaler_at(1.0), False)
    assert off(fisher(OverflowsOnce(), "fp16", scaler_at(1.5), False), plain) < 0.01


def consolidated(mixed_precision, scaler, steps=1):
    """The student's gradient at its last step, and how far it went from the teacher."""
    task = trained_task(in_format(Faint(), mixed_precision), scaler=scaler)
    before, gradients = task.adapter.state_dict(), []
    for parameter in task.adapter.parameters.values():
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.flatten().clone()))
    records = list(DSC(toy_settings(steps=steps, consolidation=1.0, temperature=0.5), True).consolidate(task))
    moved = sum(float((value - before[name]).abs().sum()) for name, value in task.adapter.state_dict().items())
    assert len(records) == steps and all(math.isfinite(record.loss) for record in records)
    return torch.cat(gradients), moved


def test_the_consolidation_in_fp16_has_the_gradient_of_fp32():
    plain, _ = consolidated("no", scaler_at(1.0))
    found, moved = consolidated("fp16", scaler_at(FIRST_SCALE))
    assert off(found / FIRST_SCALE, plain) < 0.01 and moved > 0
    assert off(consolidated("fp16", scaler_at(1.0))[0], plain) > 0.05


def test_a_step_of_the_consolidation_that_overflows_is_left_out():
    scaler = scaler_at(2.0**60)
    assert consolidated("fp16", scaler)[1] == 0 and scaler.get_scale() == 2.0**59
    assert consolidated("fp16", scaler_at(2.0**60), steps=40)[1] > 0


class InFp16(ToyBase):
    """As a host holds its model on a GPU without bf16."""

    dtype = torch.float16
    mixed_precision = "fp16"


@pytest.mark.parametrize(
    ("base", "mixed_precision", "expected", "scaled"),
    [
        (ToyBase(), "auto", None, False),
        (ToyBase(), "bf16", torch.bfloat16, False),
        (InFp16(), "auto", torch.float16, True),
        (InFp16(), "no", None, True),  # the host computes in fp16
        (InFp16(), "bf16", torch.bfloat16, False),
    ],
)
def test_auto_is_what_the_base_says_and_every_loss_in_fp16_is_scaled(base, mixed_precision, expected, scaled):
    assert number_format(base, mixed_precision) == expected
    assert loss_scaler(base, mixed_precision).is_enabled() == scaled
    assert (in_format(base, mixed_precision) is base) == (expected is None)


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
