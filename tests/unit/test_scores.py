"""Diffusion-classifier scores, their exact gradient, and the choice of prompts."""

import math
from itertools import product

import pytest
import torch

from tests.toy import ToyBase, trained_task
from trainer.losses.denoising import draw_batch
from trainer.losses.scores import (
    backward_through_errors,
    calibrated_temperature,
    cross_entropy_error_gradient,
    dc_log_scores,
    entropy,
    prompt_subset,
    score_values,
)


def test_scores_by_hand_and_summing_to_one():
    scores = dc_log_scores(torch.tensor([[1.0, 5.0], [2.0, 5.0]]), 0.5).exp()
    assert scores[:, 0].tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    assert scores[:, 1].tolist() == [0.5, 0.5]
    many = dc_log_scores(torch.rand(7, 50, generator=torch.Generator().manual_seed(0)), 1e-3).exp()
    torch.testing.assert_close(many.sum(0), torch.ones(50))


def test_entropy_by_hand():
    quarter = torch.tensor([[0.25, 1 / 3], [0.75, 2 / 3]]).log()
    expected = [-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), math.log(3) - 2 / 3 * math.log(2)]
    assert entropy(quarter).tolist() == pytest.approx(expected)
    assert entropy(dc_log_scores(torch.zeros(5, 1), 1.0)).item() == pytest.approx(math.log(5))
    assert entropy(dc_log_scores(torch.tensor([[0.0], [50.0]]), 1.0)).item() == pytest.approx(0, abs=1e-8)


def test_score_values_by_hand():
    # Two images: the first is told to be c_n, the second is not.
    values = score_values(torch.tensor([[1.0, 3.0], [2.0, 1.0]]), 0.5)
    rest = [1 / (1 + math.exp(2)), 1 / (1 + math.exp(4))]
    expected = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in rest]
    assert values == {"dc_accuracy": 0.5, "dc_entropy": pytest.approx(sum(expected) / 2, rel=1e-5)}


def test_calibrated_temperature_by_hand():
    # Standard deviations over the prompts (columns are draws), without Bessel's correction: 1 and 2.
    assert calibrated_temperature(torch.tensor([[1.0, 2.0], [3.0, 6.0]])) == 1.5
    assert calibrated_temperature(torch.ones(3, 4)) == 1e-8  # never zero: the scores stay finite
    assert torch.isfinite(dc_log_scores(torch.ones(3, 1), 1e-8)).all()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("kind", ["one-hot", "soft"])
def test_error_gradient_of_cross_entropy_equals_autograd(kind, temperature):
    rng = torch.Generator().manual_seed(3)
    errors = torch.rand(4, 6, dtype=torch.float64, generator=rng).requires_grad_()
    soft = torch.rand(4, 6, dtype=torch.float64, generator=rng).softmax(0)
    target = torch.eye(4, dtype=torch.float64)[:, [0, 3, 1, 1, 2, 0]] if kind == "one-hot" else soft
    (-(target * torch.log_softmax(-errors / temperature, 0)).sum()).backward()
    formula = cross_entropy_error_gradient(errors.detach(), target, temperature)
    torch.testing.assert_close(formula, errors.grad, rtol=1e-9, atol=1e-12)


def test_error_gradient_by_hand_pulls_the_truth_down_and_pushes_the_rest_up():
    gradient = cross_entropy_error_gradient(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), 0.1)
    assert gradient.flatten().tolist() == pytest.approx([5.0, -5.0])  # (1 - 0.5) / 0.1: e_0 up makes the loss worse


def test_low_memory_gradient_equals_the_gradient_of_one_graph(tiny):
    task = trained_task(tiny, latents=torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(5)))
    batch = draw_batch(tiny, task.latents, None, torch.arange(2), torch.Generator().manual_seed(0))
    prompts, temperature = [task.prompt, task.base_prompt, *task.earlier_prompts], 0.002
    truth = torch.eye(len(prompts))[:, [0, 0]]

    def weights(errors):
        return truth + cross_entropy_error_gradient(errors, truth, temperature)

    def gradients(backward):
        for parameter in task.adapter.parameters.values():
            parameter.grad = None
        backward()
        return {name: parameter.grad.clone() for name, parameter in task.adapter.parameters.items()}

    def one_graph():
        live = torch.stack([batch.error(prompt) for prompt in prompts])
        (live[0].sum() - torch.log_softmax(-live / temperature, 0)[0].sum()).backward()

    expected = gradients(one_graph)
    for low_memory in (True, False):
        found = gradients(lambda low=low_memory: backward_through_errors(batch, prompts, weights, low))
        for name, gradient in found.items():
            scale = expected[name].abs().max()
            torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("low_memory", "largest", "samples"), [(True, 2, 18), (False, 10, 10)])
def test_low_memory_takes_one_prompt_at_a_time(low_memory, largest, samples, monkeypatch):
    task = trained_task(ToyBase())
    batch = draw_batch(task.denoiser, task.latents, None, torch.arange(2), torch.Generator().manual_seed(0))
    prompts = [task.prompt, task.base_prompt, *task.earlier_prompts]
    sizes, predict = [], task.denoiser.predict
    monkeypatch.setattr(task.denoiser, "predict", lambda x, *rest: (sizes.append(len(x)), predict(x, *rest))[1])
    errors, _ = backward_through_errors(batch, prompts, torch.ones_like, low_memory)
    assert max(sizes) == largest and sum(sizes) == samples
    for index, prompt in enumerate(prompts):
        torch.testing.assert_close(errors[index], batch.error(prompt).detach())
    assert not errors.requires_grad


def test_one_prompt_needs_no_pass_without_a_graph(monkeypatch):
    task = trained_task(ToyBase())
    batch = draw_batch(task.denoiser, task.latents, None, torch.arange(2), torch.Generator().manual_seed(0))
    sizes, predict = [], task.denoiser.predict
    monkeypatch.setattr(task.denoiser, "predict", lambda x, *rest: (sizes.append(len(x)), predict(x, *rest))[1])
    backward_through_errors(batch, [task.prompt], torch.ones_like, True)
    assert sizes == [2]


@pytest.mark.parametrize(("num_earlier", "size"), list(product(range(7), range(2, 8))))
def test_prompt_subset_has_the_right_size_and_no_duplicates(num_earlier, size):
    for seed in range(10):
        chosen = prompt_subset(num_earlier, size, torch.Generator().manual_seed(seed))
        n = num_earlier + 1
        assert len(chosen) + 2 == min(size, n + 1)  # with c_0 and c_n
        assert len(set(chosen)) == len(chosen) and set(chosen) <= set(range(num_earlier))


def test_prompt_subset_covers_every_earlier_concept_evenly():
    rng, counts = torch.Generator().manual_seed(0), [0] * 6
    for _ in range(2000):
        for index in prompt_subset(6, 5, rng):
            counts[index] += 1
    assert sum(counts) == 6000 and all(900 < count < 1100 for count in counts)
