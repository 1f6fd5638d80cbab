"""The Fisher information from layer hooks against one backward pass per sample."""

import pytest
import torch
from torch import nn

from tests.toy import ToyBase, trained_task
from trainer.losses.denoising import NoisedBatch, draw_batch
from trainer.losses.fisher import normalized, per_sample_gradients, sum_of_squares
from trainer.losses.scores import backward_through_errors

BATCH = 3


def task_on(base, request):
    if base == "toy":
        return trained_task(ToyBase())
    latents = torch.randn(BATCH, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    return trained_task(request.getfixturevalue("tiny"), latents=latents)


def one_sample_at_a_time(task, batch, prompts, weights):
    """Plain autograd on batches of one; nothing shared with the code under test but the model."""
    gradients = {name: [] for name in task.adapter.parameters}
    for b in range(len(batch)):
        alone = NoisedBatch(task.denoiser, task.latents[:1], batch.t[b : b + 1], torch.zeros_like(task.latents[:1]))
        alone.x_t, alone.target = batch.x_t[b : b + 1], batch.target[b : b + 1]
        loss = sum(weights[i, b] * alone.error(prompt).squeeze() for i, prompt in enumerate(prompts))
        for name, grad in zip(
            gradients, torch.autograd.grad(loss, list(task.adapter.parameters.values())), strict=True
        ):
            gradients[name].append(grad)
    return {name: torch.stack(parts) for name, parts in gradients.items()}


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("base", ["toy", "tiny"])
def test_hooks_equal_batch_one_autograd_over_several_prompts(base, low_memory, request):
    task = task_on(base, request)
    batch = draw_batch(task.denoiser, task.latents, None, torch.arange(BATCH), torch.Generator().manual_seed(0))
    prompts = [task.prompt, task.base_prompt, *task.earlier_prompts]
    weights = torch.randn(len(prompts), BATCH, generator=torch.Generator().manual_seed(2))
    with per_sample_gradients(task.adapter.layers, BATCH) as gradients:
        backward_through_errors(batch, prompts, lambda errors: weights, low_memory)
    expected = one_sample_at_a_time(task, batch, prompts, weights)
    assert set(gradients) == set(expected) == set(task.adapter.parameters)
    for name, gradient in gradients.items():
        assert gradient.shape == (BATCH, *task.adapter.parameters[name].shape)
        scale = expected[name].abs().max()
        assert scale > 0, name
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=2e-5)


def test_their_sum_is_the_gradient_of_the_batch(request):
    task = task_on("tiny", request)
    batch = draw_batch(task.denoiser, task.latents, None, torch.arange(BATCH), torch.Generator().manual_seed(0))
    with per_sample_gradients(task.adapter.layers, BATCH) as gradients:
        batch.error(task.prompt).sum().backward()
    for name, parameter in task.adapter.parameters.items():
        torch.testing.assert_close(gradients[name].sum(0), parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("positions", [(), (4,)])
def test_opposite_gradients_do_not_cancel(positions):
    layer = nn.Linear(1, 1, bias=False)
    inputs = torch.tensor([2.0, -2.0]).view(2, *[1] * len(positions), 1).expand(2, *positions, 1)
    with per_sample_gradients({"w": layer}, 2) as gradients:
        layer(inputs).sum().backward()
    count = 4 if positions else 1
    assert layer.weight.grad.item() == 0
    assert gradients["w"].flatten().tolist() == [2.0 * count, -2.0 * count]
    assert sum_of_squares(gradients)["w"].item() == 2 * (2.0 * count) ** 2


def test_hooks_are_gone_after_the_block_even_when_it_fails():
    layer = nn.Linear(1, 1, bias=False)
    with pytest.raises(RuntimeError), per_sample_gradients({"w": layer}, 1) as gradients:
        raise RuntimeError
    layer(torch.ones(1, 1)).sum().backward()
    assert not gradients and not layer._forward_hooks


def test_passes_without_a_graph_leave_no_trace():
    layer = nn.Linear(1, 1, bias=False)
    with per_sample_gradients({"w": layer}, 1) as gradients, torch.no_grad():
        layer(torch.ones(1, 1))
    assert not gradients


def test_normalized_has_trace_one_over_all_entries():
    scaled, trace = normalized({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([4.0])})
    assert trace == 8.0 and scaled["a"].tolist() == [0.125, 0.375] and scaled["b"].tolist() == [0.5]


def test_a_fisher_of_zeros_stays_zero():
    scaled, trace = normalized({"a": torch.zeros(3)})
    assert trace == 0 and scaled["a"].tolist() == [0.0, 0.0, 0.0]
