"""The diffusion loss against hand values, and one draw shared by several prompts."""

import pytest
import torch

from tests.toy import KEYS, VALUES, ToyBase, trained_task
from trainer.denoiser import Conditioning
from trainer.errors import ContinualLoraError
from trainer.losses.denoising import NoisedBatch, add_noise, denoising_error, draw_batch, prediction_target
from trainer.losses.quadratic import quadratic_penalty

X_0, NOISE = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([3.0, -1.0]).view(1, 1, 1, 2)
SCALES = torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8])  # signal and spread of two samples


def both(x):
    return x.expand(2, 1, 1, 2)


def test_add_noise_by_hand():
    expected = torch.tensor([[0.8 + 1.8, 1.6 - 0.6], [0.6 + 2.4, 1.2 - 0.8]])
    torch.testing.assert_close(add_noise(both(X_0), both(NOISE), SCALES).flatten(1), expected)


def test_targets_by_hand():
    assert torch.equal(prediction_target(both(X_0), both(NOISE), SCALES, "eps"), both(NOISE))
    expected = torch.tensor([[2.4 - 0.6, -0.8 - 1.2], [1.8 - 0.8, -0.6 - 1.6]])
    torch.testing.assert_close(prediction_target(both(X_0), both(NOISE), SCALES, "v").flatten(1), expected)
    flow = torch.tensor([[3.0 - 1.0, -1.0 - 2.0]] * 2)
    assert torch.equal(prediction_target(both(X_0), both(NOISE), SCALES, "flow").flatten(1), flow)


def test_error_is_the_mean_over_channels_and_places():
    prediction, target = torch.zeros(2, 2, 1, 2), torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 2]]).view(2, 2, 1, 2)
    assert denoising_error(prediction, target).tolist() == [7.5, 1.0]


def test_mask_weighs_the_places():
    target = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 2, 1, 2)
    mask = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    # (1 * 1 + 4 * 0.5 + 9 * 1 + 16 * 0.5) / (1.5 * 2 channels)
    assert denoising_error(torch.zeros_like(target), target, mask).item() == pytest.approx(20 / 3)
    everywhere = denoising_error(torch.zeros_like(target), target, torch.ones_like(mask))
    assert torch.equal(everywhere, denoising_error(torch.zeros_like(target), target))


def test_what_the_mask_hides_has_no_gradient_and_an_empty_mask_no_nan():
    prediction = torch.ones(1, 1, 1, 2, requires_grad=True)
    denoising_error(prediction, torch.zeros(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)).sum().backward()
    assert prediction.grad.flatten().tolist() == [2.0, 0.0]
    assert denoising_error(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)).item() == 0


def test_error_of_half_precision_is_computed_in_fp32():
    prediction = torch.full((1, 1, 1, 2), 300.0, dtype=torch.float16)  # its square is not a finite fp16 number
    assert denoising_error(prediction, torch.zeros_like(prediction)).item() == 90000


@pytest.mark.parametrize("parameterization", ["eps", "v", "flow"])
def test_error_under_a_prompt_by_hand(parameterization):
    denoiser = ToyBase(parameterization=parameterization)
    batch = NoisedBatch(denoiser, X_0, torch.tensor([500]), NOISE)
    words = [[1.0, -2.0, 0.5], [0.0, 4.0, -1.0]]
    a = 1 - 501 / 1001
    signal, spread = (a, 1 - a) if parameterization == "flow" else (a**0.5, (1 - a) ** 0.5)
    pairs = ((1, 3), (2, -1))
    x_t = [signal * x + spread * n for x, n in pairs]
    target = {"eps": [3, -1], "v": [signal * n - spread * x for x, n in pairs], "flow": [2, -3]}[parameterization]
    error = 0.0
    for row in range(2):
        k, v = (
            sum(m * c for word in words for m, c in zip(matrix[row], word, strict=True)) / 2
            for matrix in (KEYS, VALUES)
        )
        error += (target[row] - k * x_t[row] - v) ** 2 / 2
    assert batch.error(Conditioning(torch.tensor([words]))).item() == pytest.approx(error, rel=1e-5)


def test_errors_of_several_prompts_equal_each_alone():
    task = trained_task(ToyBase(), masks=torch.tensor([[1.0, 0.2], [0.5, 1.0], [1.0, 1.0]]).view(3, 1, 1, 2))
    batch = draw_batch(task.denoiser, task.latents, task.masks, torch.arange(3), torch.Generator().manual_seed(0))
    prompts = [task.prompt, task.base_prompt, *task.earlier_prompts]
    errors = batch.errors(prompts)
    assert errors.shape == (5, 3) and len(errors.unique()) == 15
    torch.testing.assert_close(errors, torch.stack([batch.error(prompt) for prompt in prompts]))


def test_pooled_prompts_are_kept_side_by_side():
    first, second = (Conditioning(torch.full((1, 2, 3), x), torch.full((1, 4), x)) for x in (1.0, 2.0))
    joined = Conditioning.cat([first.expand(2), second])
    assert joined.context[:, 0, 0].tolist() == joined.pooled[:, 0].tolist() == [1.0, 1.0, 2.0]
    assert Conditioning.cat([Conditioning(first.context)] * 2).pooled is None


def test_prompts_of_different_lengths_are_an_error_of_three_facts():
    with pytest.raises(ContinualLoraError, match=r"one length.*77, 92 pieces long.*Shorten"):
        Conditioning.cat([Conditioning(torch.zeros(1, length, 3), joint=True) for length in (92, 77, 92)])


def test_draw_takes_everything_from_the_generator_and_the_mask_of_its_image():
    latents, masks = torch.arange(6.0).view(3, 1, 1, 2), torch.rand(3, 1, 1, 2)
    indices = torch.tensor([2, 0])
    batch = draw_batch(ToyBase(), latents, masks, indices, torch.Generator().manual_seed(7))
    rng = torch.Generator().manual_seed(7)
    t, noise = torch.randint(1000, (2,), generator=rng), torch.randn(2, 1, 1, 2, generator=rng)
    signal = (1 - (t + 1) / 1001)[:, None, None, None]
    assert torch.equal(batch.t, t) and torch.equal(batch.target, noise) and torch.equal(batch.mask, masks[indices])
    torch.testing.assert_close(batch.x_t, signal.sqrt() * latents[indices] + (1 - signal).sqrt() * noise)


def test_timesteps_are_uniform_and_noise_standard_normal():
    latents = torch.zeros(1, 1, 1, 2)
    batch = draw_batch(ToyBase(), latents, None, torch.zeros(20_000).long(), torch.Generator().manual_seed(0))
    assert batch.t.min() == 0 and batch.t.max() == 999
    assert (torch.bincount(batch.t // 100, minlength=10) / 2000 - 1).abs().max() < 0.1
    assert abs(batch.target.mean()) < 0.02 and abs(batch.target.std() - 1) < 0.02


def test_quadratic_penalty_and_its_gradient_by_hand():
    theta = {"a": torch.tensor([4.0, 1.0], requires_grad=True), "b": torch.tensor([[0.5]], requires_grad=True)}
    anchor = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[0.0]])}
    fisher = {"a": torch.tensor([2.0, 0.5]), "b": torch.tensor([[8.0]])}
    penalty = quadratic_penalty(theta, anchor, fisher)
    assert penalty.item() == 2 * 9 + 0.5 * 4 + 8 * 0.25  # no 1/2 in front
    penalty.backward()
    assert theta["a"].grad.tolist() == [12.0, -2.0] and theta["b"].grad.item() == 8.0
