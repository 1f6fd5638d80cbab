"""Consolidation: the loss and its gradient against autograd over plain copies of the model, the passes it costs."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, toy_settings, trained_task
from trainer.errors import ContinualLoraError
from trainer.losses.denoising import NoisedBatch
from trainer.losses.scores import prompt_subset
from trainer.methods.dsc import CALIBRATION_BATCHES, DSC
from trainer.task import step_rng


def draw_of(task, settings, classifier, phase="consolidate", step=0):
    """One draw made again from the words of the documentation: (batch, prompts c_n, c_j, c_0, ..., j)."""
    rng = step_rng(task.seed, phase, step)
    indices = torch.randint(len(task.latents), (settings.batch_size,), generator=rng)
    t = torch.randint(1000, (settings.batch_size,), generator=rng)
    noise = torch.randn(settings.batch_size, *task.latents.shape[1:], generator=rng)
    batch = NoisedBatch(task.denoiser, task.latents[indices], t, noise)
    j, *others = prompt_subset(len(task.earlier_prompts), max(3, settings.num_prompts), rng)
    prompts = [task.prompt, task.earlier_prompts[j]]
    return batch, prompts + ([task.base_prompt, *(task.earlier_prompts[i] for i in others)] if classifier else []), j


def copy_with(unet, state):
    """A model of its own that carries another adapter."""
    other = copy.deepcopy(unet)
    for name, value in state.items():
        layer, _, factor = name.rpartition(".")
        side = "lora_A" if factor == "lora_down" else "lora_B"
        other.get_parameter(f"{layer}.{side}.continual.weight").data = value.clone()
    return other


def loss_by_autograd(task, settings, classifier, temperature, teachers):
    """The formula with three models: two frozen copies of the U-Net as teachers."""
    batch, prompts, _ = draw_of(task, settings, classifier)
    first, second = (copy_with(task.denoiser.unet, state) for state in teachers)

    def predictions(unet):
        return torch.stack([unet(batch.x_t, batch.t, p.context.expand(len(batch), -1, -1)) for p in prompts])

    with torch.no_grad():
        taught = [predictions(first), predictions(second)]
    student = predictions(task.denoiser.unet)
    terms = [(taught[i][i] - student[i]).square().mean() for i in (0, 1)]
    if classifier:
        errors = lambda p: (p - batch.target).square().mean((2, 3, 4))  # noqa: E731
        own = torch.log_softmax(-errors(student) / temperature, 0)
        for prediction in taught:
            cross_entropy = -(torch.softmax(-errors(prediction) / temperature, 0) * own).sum(0).mean()
            terms.append(temperature**2 * cross_entropy)
    return torch.stack(terms).sum()


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("moved", [0.0, 0.3])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_has_the_gradient_of_the_formula(passes, moved, classifier, low_memory):
    """At the start the student is teacher 1, whose terms have no gradient there; then it has moved away from it."""
    task, rng = trained_task(ToyBase()), torch.Generator().manual_seed(7)
    settings = toy_settings(batch_size=3, temperature=0.4, num_prompts=4, low_memory=low_memory)
    method, (batch, prompts, j) = DSC(settings, classifier=classifier), draw_of(task, settings, classifier)
    teachers = (task.adapter.state_dict(), task.earlier_adapter(j))
    for parameter in task.adapter.parameters.values():
        parameter.data += moved * torch.randn(parameter.shape, generator=rng)
    loss = loss_by_autograd(task, settings, classifier, 0.4, teachers)
    expected = torch.autograd.grad(loss, list(task.adapter.parameters.values()))
    _, values = method._backward(task, batch, prompts, teachers, 0.4, passes)
    for parameter, gradient in zip(task.adapter.parameters.values(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    assert (values["l2_teacher1"] > 0) == (moved > 0) and values["l2_teacher2"] > 0
    if classifier:
        assert (values["kl_teacher1"] > 1e-4) == (moved > 0) and values["kl_teacher2"] > 0
        assert values["kl_teacher1"] == pytest.approx(0, abs=1e-6) or moved
    assert {"dc_accuracy", "dc_entropy"} <= set(values) if classifier else set(values) == {"l2_teacher1", "l2_teacher2"}


@pytest.mark.parametrize("recipe", ["lora_dsc_ewc", "lora_dsc_ewc_dc"])
def test_accumulated_passes_are_a_larger_batch(recipe):
    students = []
    for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
        task = trained_task(ToyBase(), num_earlier=3)
        settings = toy_settings(
            steps=4, consolidation=1.0, batch_size=batch_size, gradient_accumulation=accumulation, temperature=0.5
        )
        records = list(DSC(settings, classifier=recipe.endswith("dc")).consolidate(task))
        students.append(([record.loss for record in records], task.adapter.state_dict()))
    for losses, state in students[1:]:
        assert losses == pytest.approx(students[0][0], rel=1e-4)
        for name, value in state.items():
            torch.testing.assert_close(value, students[0][1][name], rtol=1e-3, atol=1e-5)


def test_the_student_ends_nearer_to_the_earlier_teacher():
    task = trained_task(ToyBase(), num_earlier=1)
    records = list(DSC(toy_settings(steps=100, consolidation=0.5, learning_rate=0.02)).consolidate(task))
    first, last = (sum(r.values["l2_teacher2"] for r in part) for part in (records[:10], records[-10:]))
    assert len(records) == 50 and last < 0.5 * first
    assert {record.phase for record in records} == {"consolidate"}


def test_nothing_happens_at_the_first_task():
    task = trained_task(ToyBase(), num_earlier=0)
    before = task.adapter.state_dict()
    assert list(DSC(toy_settings(), classifier=True).consolidate(task)) == []
    assert all(torch.equal(value, before[name]) for name, value in task.adapter.state_dict().items())


def test_penalties_stay_active():
    """A penalty that dwarfs the distillation keeps the student where it started."""
    moved = []
    for weight in (0.0, 1e4):
        task = trained_task(ToyBase())
        start, theta = task.adapter.state_dict(), task.adapter.parameters

        def penalty(weight=weight, start=start, theta=theta):
            return weight * sum((value - start[name]).square().sum() for name, value in theta.items())

        records = list(DSC(toy_settings(steps=100)).consolidate(replace(task, penalty=penalty)))
        assert (records[-1].penalty > 0) == (weight > 0)
        moved.append(sum(float((value.detach() - start[name]).square().sum()) for name, value in theta.items()))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize(
    ("classifier", "low_memory", "passes"), [(False, False, 6), (True, False, 12), (False, True, 6), (True, True, 14)]
)
def test_a_step_costs_what_the_method_says(classifier, low_memory, passes, monkeypatch):
    """Forward and backward count 1 each, for every prompt; |C| = 3.

    With `low_memory` the scores of all prompts but the last one are known before anything is sent back.
    """
    task, count = trained_task(ToyBase()), [0]
    predict = task.denoiser.predict

    def spy(x_t, t, conditioning):
        count[0] += len(x_t) // 2 * (2 if torch.is_grad_enabled() else 1)
        return predict(x_t, t, conditioning)

    monkeypatch.setattr(task.denoiser, "predict", spy)
    settings = toy_settings(steps=10, consolidation=0.1, num_prompts=3, temperature=0.5, low_memory=low_memory)
    assert len(list(DSC(settings, classifier=classifier).consolidate(task))) == 1
    assert count[0] == passes


def test_temperature_is_calibrated_on_draws_of_its_own():
    task, settings = trained_task(ToyBase()), toy_settings(num_prompts=4)
    spreads = []
    for step in range(CALIBRATION_BATCHES):
        batch, prompts, _ = draw_of(task, settings, True, "calibration", step)
        with torch.no_grad():
            spreads.append(float(batch.errors(prompts).std(0, correction=0).mean()))
    found = DSC(settings, classifier=True)._calibrate(task)
    assert found == pytest.approx(sum(spreads) / CALIBRATION_BATCHES, rel=1e-5)


def test_tokens_stay_frozen_and_no_gradient_is_left():
    task = trained_task(ToyBase())
    list(DSC(toy_settings(), classifier=True).consolidate(task))
    assert all(parameter.grad is None for parameter in task.adapter.parameters.values())
    assert not any(p.context.requires_grad for p in (task.prompt, task.base_prompt, *task.earlier_prompts))


@pytest.mark.parametrize("penalty", [math.nan, math.inf])
def test_a_penalty_that_is_no_number_stops_the_consolidation_before_it_changes_anything(penalty):
    task, calls = trained_task(ToyBase()), []

    def bad_at_the_second_step():
        calls.append(1)
        total = sum(value.sum() for value in task.adapter.parameters.values())
        return total * (0.0 if len(calls) == 1 else penalty)

    steps = DSC(toy_settings(steps=10)).consolidate(replace(task, penalty=bad_at_the_second_step))
    next(steps)
    before = task.adapter.state_dict()
    message = rf"The penalty should be a number\. It became -?{penalty} at step 2 of 3 of the consolidation\. Lower"
    with pytest.raises(ContinualLoraError, match=message):
        next(steps)
    assert all(torch.equal(value, task.adapter.state_dict()[name]) for name, value in before.items())
