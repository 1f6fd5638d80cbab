"""The training loop: what a step computes, and that its state is all there is."""

import math

import pytest
import torch

from tests.toy import ENCODER, ToyBase, toy_settings
from trainer.adapters.lora import LoraAdapter
from trainer.denoiser import Conditioning
from trainer.errors import ContinualLoraError
from trainer.loop import train_concept
from trainer.losses.denoising import NoisedBatch
from trainer.methods.method import Method
from trainer.task import StepRecord, step_rng
from trainer.training.buckets import Bucket
from trainer.training.schedule import schedule_factor
from trainer.training.state import TrainState

LATENTS = torch.tensor([[0.5, -1.0], [1.5, 0.25], [-0.75, 2.0]]).view(3, 1, 1, 2)
PROMPT = "photo of a <fox> animal"


class Weigh(Method):
    """A penalty that is easy to compute again: 3 * sum theta^2."""

    def penalty(self, adapter):
        return 3 * sum(value.square().sum() for value in adapter.parameters.values())


class Training:
    """A loop on the toy that a test may look into."""

    def __init__(self, methods=(), **changes):
        self.settings = toy_settings(**changes)
        self.denoiser = ToyBase()
        adapter = LoraAdapter(self.denoiser.unet, 2, 2.0, torch.Generator().manual_seed(0))
        self.state = TrainState(adapter, self.denoiser.word_vectors("animal"), self.settings)
        self.methods = methods

    def encode(self, indices, rng=None):
        tokens = {"fox": {**self.state.token}}
        return Conditioning.cat([self.denoiser.encode_prompt(PROMPT, tokens) for _ in indices])

    def steps(self):
        parts = (self.denoiser, [Bucket(LATENTS)], self.encode, self.state, self.methods, self.settings, "0/1")
        return train_concept(*parts)

    def bits(self):
        return {name: value.detach().clone() for name, value in self.state.parameters.items()}


def first_batch_error(training):
    """Mean denoising error of the first batch, drawn again from (seed, phase, step)."""
    rng = step_rng("0/1", "train", 0)
    indices = torch.randint(3, (2,), generator=rng)
    t, noise = torch.randint(1000, (2,), generator=rng), torch.randn(2, 1, 1, 2, generator=rng)
    return NoisedBatch(training.denoiser, LATENTS[indices], t, noise).error(training.encode(indices)).mean()


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5)]),
    ],
)
def test_schedule_factor_by_hand(schedule, factors):
    assert [schedule_factor(step, 8, 4, schedule) for step in range(8)] == pytest.approx(factors)


def test_warm_up_longer_than_the_training():
    assert [schedule_factor(step, 4, 10, "cosine") for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_learning_rates_of_lora_and_token_follow_the_schedule():
    training = Training(schedule="linear", warmup_steps=2, learning_rate=0.1, token_learning_rate=0.02)
    rates = [[group["lr"] for group in training.state.optimizer.param_groups] for _ in training.steps()]
    assert rates == [pytest.approx(pair) for pair in ([0.05, 0.01], [0.1, 0.02], [0.1, 0.02], [0.05, 0.01])]


def test_record_of_the_first_step_by_hand():
    training = Training()
    expected = first_batch_error(training).item()
    record = next(training.steps())
    deltas = [delta.detach() for delta in training.state.adapter.deltas().values()]
    values = {"adapter_norm": pytest.approx(math.sqrt(sum(float((delta**2).sum()) for delta in deltas)), rel=1e-6)}
    assert record == StepRecord("train", 1, 4, pytest.approx(expected, rel=1e-6), 0.0, values)


def test_records_count_the_steps_and_match_the_log():
    training = Training([Weigh(toy_settings())])
    records = list(training.steps())
    assert [(r.phase, r.step, r.total) for r in records] == [("train", step, 4) for step in (1, 2, 3, 4)]
    assert [r.loss for r in records] == training.state.losses and training.state.step == 4
    assert [r.penalty for r in records] == training.state.penalties


def test_the_penalties_of_all_methods_are_added_up():
    training = Training([Weigh(toy_settings()), Method(toy_settings()), Weigh(toy_settings())])
    expected = 6 * sum(value.square().sum().item() for value in training.state.adapter.parameters.values())
    assert next(training.steps()).penalty == pytest.approx(expected, rel=1e-6) and expected > 0


@pytest.mark.parametrize("methods", [[], [Weigh(toy_settings())]])
def test_first_step_is_adamw_on_loss_plus_penalty(methods):
    training = Training(methods, gradient_clip=0.05)
    before, parameters = training.bits(), training.state.parameters
    loss = first_batch_error(training) + sum(m.penalty(training.state.adapter) for m in methods)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 0.05  # the clip bites
    next(training.steps())
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        clipped = gradient * 0.05 / norm
        torch.testing.assert_close(parameter.grad, clipped, rtol=1e-4, atol=1e-7)
        rate = 1e-3 if name.startswith("token") else 0.05  # AdamW's first step: g / (|g| + eps)
        torch.testing.assert_close(parameter.detach(), before[name] - rate * clipped / (clipped.abs() + 1e-8))


def test_weight_decay_shrinks_the_lora_and_not_the_token():
    plain, decayed = Training(steps=1), Training(steps=1, weight_decay=0.5)
    before = plain.bits()
    list(plain.steps()), list(decayed.steps())
    for name, value in decayed.bits().items():
        shrink = 0 if name.startswith("token") else 0.05 * 0.5
        torch.testing.assert_close(value, plain.bits()[name] - shrink * before[name])


def test_token_is_frozen_at_learning_rate_zero():
    training = Training(token_learning_rate=0.0)
    start = training.denoiser.word_vectors("animal")[ENCODER]
    list(training.steps())
    assert torch.equal(training.state.frozen_token()[ENCODER], start)
    token = training.state.token[ENCODER]
    assert token.grad is None and not token.requires_grad  # so it takes no share of the clipped norm either
    learning = Training()
    list(learning.steps())
    assert (learning.state.frozen_token()[ENCODER] - start).abs().min() > 0


def test_frozen_token_is_a_copy():
    training = Training()
    copied = training.state.frozen_token()[ENCODER]
    kept = copied.clone()
    list(training.steps())
    assert torch.equal(copied, kept) and not copied.requires_grad


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_restored_state_goes_on_to_the_bit(cut):
    whole, first, second = Training(), Training(), Training()
    list(whole.steps())
    steps = first.steps()
    for _ in range(cut):
        next(steps)
    second.state.load_state_dict({name: value.clone() for name, value in first.state.state_dict().items()})
    list(second.steps())
    assert all(torch.equal(value, second.bits()[name]) for name, value in whole.bits().items())
    assert (second.state.losses, second.state.step) == (whole.state.losses, 4)


def test_an_exception_leaves_the_state_of_the_last_whole_step():
    training, reference = Training(), Training(steps=2)
    list(reference.steps())
    training.denoiser.on_predict = lambda count: 1 / (3 - count)
    with pytest.raises(ZeroDivisionError):
        list(training.steps())
    assert training.state.step == len(training.state.losses) == len(training.state.penalties) == 2
    assert all(torch.equal(value, reference.bits()[name]) for name, value in training.bits().items())


class Bad(Method):
    """From the second step on, a penalty that is no number, or whose gradient is none."""

    def __init__(self, kind):
        super().__init__(toy_settings())
        self.kind, self.calls = kind, 0

    def penalty(self, adapter):
        self.calls += 1
        total = sum(value.sum() for value in adapter.parameters.values())
        if self.calls < 2:
            return 0 * total
        # the root of 0 is a number, its derivative is not
        return math.inf * total.abs() if self.kind == "penalty" else (total - total.detach()).sqrt()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("loss", r"The loss should be a number\. It became nan at step 2 of 4\. Lower the learning rates"),
        ("penalty", r"The penalty should be a number\. It became inf at step 2 of 4\. Lower penalty_weight"),
        ("gradient", r"The gradient should .* Its norm became (inf|nan) at step 2 of 4, .* Set mixed_precision to no"),
    ],
)
def test_what_is_no_number_stops_with_three_facts_and_changes_nothing(kind, message):
    training = Training([Bad(kind)] if kind != "loss" else [])
    steps = training.steps()
    next(steps)
    before = {name: value.clone() for name, value in training.state.state_dict().items()}
    if kind == "loss":
        training.denoiser.unet.middle_block[1].attn2.to_v.base_layer.weight.data = torch.full((2, 3), torch.nan)
    with pytest.raises(ContinualLoraError, match=message):
        next(steps)
    after = training.state.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    assert training.state.whole and training.state.step == 1


def test_step_generators_differ_by_seed_phase_and_step_and_repeat():
    keys = [("0/1", "train", 0), ("0/1", "train", 1), ("0/1", "fisher", 0), ("0/2", "train", 0), ("1/1", "train", 0)]
    draws = [torch.rand(1, generator=step_rng(*key)).item() for key in keys]
    assert len(set(draws)) == 5 and draws == [torch.rand(1, generator=step_rng(*key)).item() for key in keys]


def test_accumulated_batches_are_one_large_batch():
    large, small = Training(batch_size=6), Training(batch_size=2, gradient_accumulation=3)
    for one, other in zip(large.steps(), small.steps(), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
    for name, value in large.bits().items():
        torch.testing.assert_close(small.bits()[name], value, rtol=1e-4, atol=1e-6)


def test_the_penalty_counts_once_however_many_passes_a_step_has():
    large, small = (
        Training([Weigh(toy_settings())], batch_size=6),
        Training([Weigh(toy_settings())], batch_size=2, gradient_accumulation=3),
    )
    one, other = next(large.steps()), next(small.steps())
    assert other.penalty == pytest.approx(one.penalty) and other.penalty > 0
    for name, value in large.bits().items():
        torch.testing.assert_close(small.bits()[name], value, rtol=1e-4, atol=1e-6)
