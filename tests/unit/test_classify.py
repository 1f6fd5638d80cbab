"""Classifying images: errors by hand on the toy, shared draws, pruning."""

import pytest
import torch

from tests.toy import KEYS, VALUES, ToyBase, trained_task
from trainer.classifier import (
    candidate_prompts,
    classify,
    comparable_means,
    pruning_schedule,
    stratified_timesteps,
)
from trainer.denoiser import Conditioning
from trainer.errors import ContinualLoraError

# K c = (1, 1) for all of them, so the prediction is x_t + V c = sqrt(a) x_0 + sqrt(1 - a) noise + V c.
# As sqrt(a) is 2/3 on average, the image x_0 = -3/2 V c is explained best by the prompt c.
CODES = torch.tensor([[2 + 0.5 * b, b, 1 - 0.5 * b] for b in (4.0, -4.0, 8.0, -8.0, 12.0, -12.0)])
CLEAR_PROMPTS = [Conditioning(code[None, None]) for code in CODES]
CLEAR_IMAGES = -1.5 * (CODES @ torch.tensor(VALUES).T)[:, None, None, :]


def spied(denoiser, monkeypatch):
    """What each pass was given: (x_t, t)."""
    seen, predict = [], denoiser.predict
    monkeypatch.setattr(denoiser, "predict", lambda x, t, c: (seen.append((x, t)), predict(x, t, c))[1])
    return seen


def test_the_codes_are_what_they_claim():
    assert torch.equal(CODES @ torch.tensor(KEYS).T, torch.ones(6, 2))


def test_errors_and_argmin_by_hand():
    task = trained_task(ToyBase())
    prompts = [task.prompt, task.base_prompt, *task.earlier_prompts]
    found = classify(ToyBase(), task.latents, prompts, trials=3, seed=11, pruned=False)
    rng = torch.Generator().manual_seed(11)
    timesteps, noises = stratified_timesteps(3, rng), torch.randn(3, 1, 1, 2, generator=rng)
    expected = torch.zeros(5, 3)
    for t, noise in zip(timesteps, noises.flatten(1), strict=True):
        a = 1 - (t + 1) / 1001
        for i, prompt in enumerate(prompts):
            word = prompt.context[0].mean(0)
            for b, x_0 in enumerate(task.latents.flatten(1)):
                x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
                prediction = torch.tensor(KEYS) @ word * x_t + torch.tensor(VALUES) @ word
                expected[i, b] += (noise - prediction).square().mean() / 3
    torch.testing.assert_close(found.errors, expected)
    assert torch.equal(found.predicted, expected.argmin(0)) and (found.trials == 3).all()
    assert found.temperature == pytest.approx(float(expected.std(0, correction=0).mean()), rel=1e-4)
    torch.testing.assert_close(found.scores, (-expected / found.temperature).softmax(0), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.scores.sum(0), torch.ones(3))


def test_a_given_temperature_is_used():
    assert classify(ToyBase(), CLEAR_IMAGES, CLEAR_PROMPTS, 2, 0, temperature=0.25).temperature == 0.25


@pytest.mark.parametrize("pruned", [False, True])
def test_every_trial_shares_its_draw_over_the_prompts(pruned, monkeypatch):
    denoiser = ToyBase()
    seen = spied(denoiser, monkeypatch)
    classify(denoiser, CLEAR_IMAGES[:1], CLEAR_PROMPTS, trials=8, seed=0, pruned=pruned)
    draws = {}
    for batch, times in seen:
        for x_t, t in zip(batch, times, strict=True):
            draws.setdefault(t.item(), []).append(x_t)
    assert len(draws) == 8 and (pruned or all(len(same) == 6 for same in draws.values()))
    assert all(torch.equal(x_t, same[0]) for same in draws.values() for x_t in same)
    assert len({same[0].flatten()[0].item() for same in draws.values()}) == 8


def test_pruning_predicts_the_same_on_clear_cases_with_fewer_passes():
    whole, fast = ToyBase(), ToyBase()
    full = classify(whole, CLEAR_IMAGES, CLEAR_PROMPTS, trials=16, seed=0, pruned=False)
    pruned = classify(fast, CLEAR_IMAGES, CLEAR_PROMPTS, trials=16, seed=0)
    assert full.predicted.tolist() == pruned.predicted.tolist() == [0, 1, 2, 3, 4, 5]
    # 36 pairs of prompt and image, 8 in a pass, of several trials where one has not enough: 72 in 9 passes, then 18 x 2
    # in 5 and 12 x 12 in 18.
    assert whole.passes == 36 * 16 / 8 and fast.passes == 9 + 5 + 18
    assert full.trials.sum() == 6 * 6 * 16
    # Of 6 prompts: 2 trials for all, 2 more for the best 3, 12 more for the best 2.
    assert pruned.trials.sum(0).tolist() == [6 * 2 + 3 * 2 + 2 * 12] * 6
    assert sorted(pruned.trials[:, 0].tolist()) == [2, 2, 2, 4, 16, 16]


def test_pruning_one_image_saves_passes_and_reports_each():
    denoiser, reports = ToyBase(), []
    classify(denoiser, CLEAR_IMAGES[2:3], CLEAR_PROMPTS, 16, 0, on_pass=lambda *report: reports.append(report))
    assert denoiser.passes == len(reports) == 6
    each = [*[8, 4], *[6], *[8, 8, 8]]  # 6 prompts x 2 trials, 3 x 2, 2 x 12
    assert [done for done, _ in reports] == [sum(each[:i]) for i in range(1, 7)]
    assert {total for _, total in reports} == {96}


def test_prompts_of_several_lengths_give_what_each_gives_alone(tiny):
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 8, 8, 8, generator=rng)
    prompts = [Conditioning(torch.randn(1, length, 128, generator=rng)) for length in (5, 7, 5, 7, 3)]
    together = classify(tiny, latents, prompts, trials=3, seed=0, pruned=False, temperature=1.0).errors
    pairs = [(prompt, latents[b : b + 1]) for prompt in prompts for b in range(2)]
    # A second prompt that is the same twice: the classifier wants two.
    alone = [classify(tiny, x_0, [c, c], 3, 0, pruned=False, temperature=1.0).errors[0, 0] for c, x_0 in pairs]
    torch.testing.assert_close(together, torch.stack(alone).view(5, 2), rtol=1e-5, atol=1e-6)


def test_a_dropped_prompt_is_compared_on_the_trials_that_it_had():
    # Two trials, two prompts; the second prompt was dropped after the easy first trial (errors 1 and 3).
    table = torch.tensor([[[1.0], [3.0]], [[9.0], [torch.nan]]])
    # The reference's mean is 5, the excess on the shared trial 2; a plain mean would call the dropped one better.
    assert comparable_means(table).tolist() == [[5.0], [7.0]]


def test_comparable_means_are_plain_means_where_nothing_was_dropped():
    table = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(comparable_means(table), table.mean(0))


def test_the_most_probable_prompt_is_the_predicted_one_and_had_every_trial():
    pruned = classify(ToyBase(), CLEAR_IMAGES, CLEAR_PROMPTS, trials=16, seed=0)
    assert pruned.scores.argmax(0).tolist() == pruned.predicted.tolist()
    assert pruned.trials.gather(0, pruned.predicted[None]).tolist() == [[16] * 6]


def test_comparable_means_by_hand():
    nan = torch.nan
    # Rows are trials. The first prompt is the reference; the third was dropped after one trial, the fourth after two.
    table = torch.tensor([[1.0, 2.0, 2.0, 1.5], [2.0, 3.0, nan, 5.0], [6.0, 7.0, nan, nan]])[:, :, None]
    assert comparable_means(table).flatten().tolist() == [3.0, 4.0, 3.0 + 1.0, 3.0 + (0.5 + 3.0) / 2]


def test_candidates_are_each_prompt_once_and_at_least_two():
    assert candidate_prompts(["a <fox>", "a cat"], [" a cat ", "", "a dog"]) == ["a <fox>", "a cat", "a dog"]
    with pytest.raises(ContinualLoraError, match=r"at least two different prompts\. There are 1\. Write more"):
        candidate_prompts(["a cat"], ["a cat", " "])


def test_same_seed_same_errors_and_another_seed_others():
    def errors(seed):
        return classify(ToyBase(), CLEAR_IMAGES, CLEAR_PROMPTS, 4, seed).errors

    torch.manual_seed(1)
    first = errors(0)
    torch.manual_seed(2)
    assert torch.equal(first, errors(0)) and not torch.equal(first, errors(1))


def test_what_on_pass_raises_stops_at_once():
    def stop(done, total):
        if done == 16:
            raise KeyboardInterrupt

    denoiser = ToyBase()
    with pytest.raises(KeyboardInterrupt):
        classify(denoiser, CLEAR_IMAGES, CLEAR_PROMPTS, 4, 0, on_pass=stop)
    assert denoiser.passes == 2


@pytest.mark.parametrize("trials", [1, 2, 7, 40, 1000])
def test_timesteps_are_one_from_each_equal_part(trials):
    t = stratified_timesteps(trials, torch.Generator().manual_seed(trials))
    assert t.min() >= 0 and t.max() <= 999
    # 1000 / trials timesteps belong to each part; a boundary that is no whole number falls into either.
    parts = (t.sort().values + 0.5) * trials / 1000
    assert ((parts - torch.arange(trials) - 0.5).abs() <= 0.5 + 0.5 * trials / 1000).all()
    assert trials < 3 or not torch.equal(t, t.sort().values)  # any prefix covers the range


@pytest.mark.parametrize(
    ("prompts", "trials", "stages"),
    [
        (8, 16, [(2, 8), (4, 4), (16, 2)]),
        (5, 16, [(2, 5), (4, 3), (16, 2)]),
        (3, 1, [(1, 3)]),
        (3, 2, [(1, 3), (2, 2)]),
        (100, 8, [(1, 100), (2, 50), (4, 25), (8, 13)]),
        (2, 16, [(16, 2)]),
        (1, 4, [(4, 1)]),
    ],
)
def test_pruning_schedule_by_hand(prompts, trials, stages):
    assert pruning_schedule(prompts, trials, pruned=True) == stages
    assert pruning_schedule(prompts, trials, pruned=False) == [(trials, prompts)]
