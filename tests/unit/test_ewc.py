"""Elastic weight consolidation: the penalty by hand, the Fisher against brute-force autograd."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, toy_settings, trained_task
from trainer.errors import ContinualLoraError
from trainer.losses.denoising import NoisedBatch
from trainer.losses.scores import calibrated_temperature, prompt_subset
from trainer.methods.ewc import CALIBRATION_BATCHES, EWC
from trainer.task import step_rng

MASKS = torch.tensor([[1.0, 0.2], [0.5, 1.0], [1.0, 1.0]]).view(3, 1, 1, 2)


def ended(task, classifier=True, ewc=None, **changes):
    """An EWC after the task, and its records."""
    ewc = ewc or EWC(toy_settings(**changes), classifier=classifier)
    return ewc, list(ewc.end_task(task))


def draws_of(task, settings, classifier, phase, step, count):
    """The draw of one Fisher step, made again from the words of the documentation: (batch of one each, prompts)."""
    rng = step_rng(task.seed, phase, step)
    indices = [(step * settings.batch_size + b) % len(task.latents) for b in range(count)]
    t = torch.randint(1000, (count,), generator=rng)
    noise = torch.randn(count, *task.latents.shape[1:], generator=rng)
    chosen = prompt_subset(len(task.earlier_prompts), settings.num_prompts, rng) if classifier else []
    prompts = [task.prompt, task.base_prompt, *(task.earlier_prompts[j] for j in chosen)][: None if classifier else 1]
    singles = []
    for b, i in enumerate(indices):
        mask = None if task.masks is None else task.masks[i : i + 1]
        singles.append(NoisedBatch(task.denoiser, task.latents[i : i + 1], t[b : b + 1], noise[b : b + 1], mask))
    return singles, prompts


def brute_force_fisher(task, settings, classifier, temperature):
    """Mean over draws of (d [L_den + CE] / d theta)^2 by autograd on one sample at a time, then scaled to trace 1."""
    total = {name: torch.zeros_like(value) for name, value in task.adapter.parameters.items()}
    done = 0
    for step in range(math.ceil(settings.fisher_draws / settings.batch_size)):
        count = min(settings.batch_size, settings.fisher_draws - done)
        singles, prompts = draws_of(task, settings, classifier, "fisher", step, count)
        for sample in singles:
            errors = torch.cat([sample.error(prompt) for prompt in prompts])
            loss = errors[0]
            if classifier:
                loss = loss - torch.log_softmax(-errors / temperature, 0)[0]
            for name, grad in zip(
                total, torch.autograd.grad(loss, list(task.adapter.parameters.values())), strict=True
            ):
                total[name] += grad.square() / settings.fisher_draws
            done += 1
    assert done == settings.fisher_draws
    trace = torch.cat([f.flatten() for f in total.values()]).sum()
    return {name: f / trace for name, f in total.items()}, float(trace)


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("classifier", [True, False])
@pytest.mark.parametrize("masks", [None, MASKS])
def test_fisher_equals_brute_force_on_the_toy(masks, classifier, low_memory):
    task = trained_task(ToyBase(), masks=masks)
    ewc, records = ended(task, classifier, fisher_draws=7, num_prompts=4, temperature=0.3, low_memory=low_memory)
    expected, trace = brute_force_fisher(task, ewc.settings, classifier, 0.3)
    assert records[-1].values["fisher_trace"] == pytest.approx(trace, rel=1e-4)
    for name, fisher in ewc.fisher.items():
        torch.testing.assert_close(fisher, expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].max()))


def fisher_of_the_weights(task, settings, temperature):
    """The same by the K and V weights themselves, of a model into which the update was merged, before it is scaled."""
    merged = ToyUNet()
    weights = {layer: merged.get_parameter(f"{layer}.weight") for layer in task.adapter.deltas()}
    for layer, delta in task.adapter.deltas().items():
        weights[layer].data.add_(delta.detach())
    total = {layer: torch.zeros_like(weight) for layer, weight in weights.items()}
    for step in range(settings.fisher_draws // settings.batch_size):
        singles, prompts = draws_of(task, settings, True, "fisher", step, settings.batch_size)
        for sample in singles:
            predictions = [merged(sample.x_t, sample.t, prompt.context) for prompt in prompts]
            errors = torch.stack([(sample.target - p).square().mean() for p in predictions])
            loss = errors[0] - torch.log_softmax(-errors / temperature, 0)[0]
            for layer, grad in zip(total, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total[layer] += grad.square() / settings.fisher_draws
    return total


@pytest.mark.parametrize("low_memory", [True, False])
def test_fisher_and_penalty_in_the_space_of_the_update(low_memory):
    task = trained_task(ToyBase())
    settings = {"fisher_draws": 6, "num_prompts": 4, "temperature": 0.3, "penalty_weight": 3.0}
    ewc, records = ended(task, True, fisher_space="update", low_memory=low_memory, **settings)
    expected = fisher_of_the_weights(task, ewc.settings, 0.3)
    trace = sum(float(f.sum()) for f in expected.values())
    assert records[-1].values["fisher_trace"] == pytest.approx(trace, rel=1e-4)
    for layer, fisher in expected.items():
        torch.testing.assert_close(
            ewc.fisher[layer], fisher / trace, rtol=1e-3, atol=1e-5 * float(fisher.max() / trace)
        )
    before = {layer: delta.detach().clone() for layer, delta in task.adapter.deltas().items()}
    for parameter in task.adapter.parameters.values():
        parameter.data += 0.2
    moves = {layer: delta.detach() - before[layer] for layer, delta in task.adapter.deltas().items()}
    held = 3.0 * sum(float((f / trace * moves[layer].square()).sum()) for layer, f in expected.items())
    assert ewc.penalty(task.adapter).item() == pytest.approx(held, rel=1e-3) and held > 0


def test_the_penalty_on_the_update_does_not_see_how_it_is_factored():
    """Up times 2 and down by 2 is the same model: it costs nothing here, and something in the parameters."""
    costs = {}
    for space in ("update", "parameters"):
        task = trained_task(ToyBase())
        ewc, _ = ended(task, fisher_space=space)
        for name, parameter in task.adapter.parameters.items():
            parameter.data *= 2.0 if name.endswith("lora_up") else 0.5
        costs[space] = ewc.penalty(task.adapter).item()
    assert costs["update"] < 1e-10 and costs["parameters"] > 1e-3


def test_fisher_equals_brute_force_on_the_embedded_base(tiny):
    task = trained_task(tiny, latents=torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)))
    ewc, records = ended(task, True, fisher_draws=3, num_prompts=3, temperature=0.01)
    expected, trace = brute_force_fisher(task, ewc.settings, True, 0.01)
    assert records[-1].values["fisher_trace"] == pytest.approx(trace, rel=1e-3)
    for name, fisher in ewc.fisher.items():
        torch.testing.assert_close(fisher, expected[name], rtol=1e-2, atol=1e-3 * float(expected[name].max()))


def test_the_classifier_changes_the_fisher():
    task = trained_task(ToyBase())
    with_classes, without = (ended(task, classifier)[0].fisher for classifier in (True, False))
    assert any((with_classes[name] - without[name]).abs().max() > 0.1 for name in without)


def test_fisher_has_trace_one_after_the_first_task():
    ewc, _ = ended(trained_task(ToyBase()))
    everything = torch.cat([f.flatten() for f in ewc.fisher.values()])
    assert everything.sum().item() == pytest.approx(1, abs=1e-5) and everything.min() >= 0


@pytest.mark.parametrize(("draws", "classifier"), [(1, False), (5, False), (6, True), (7, True)])
def test_exactly_fisher_draws_samples_are_back_propagated(draws, classifier, monkeypatch):
    task, sizes = trained_task(ToyBase(), num_earlier=1), []
    predict = task.denoiser.predict

    def spy(x_t, t, conditioning):
        sizes.extend([len(x_t)] if torch.is_grad_enabled() else [])
        return predict(x_t, t, conditioning)

    monkeypatch.setattr(task.denoiser, "predict", spy)
    _, records = ended(task, classifier, fisher_draws=draws)
    assert sum(sizes) == draws * (3 if classifier else 1)  # c_n, c_0 and the one earlier concept
    assert [r.step for r in records[:-1]] == list(range(1, math.ceil(draws / 2) + 1))
    assert {(r.phase, r.total) for r in records} == {("fisher", math.ceil(draws / 2))}


def test_all_prompts_of_a_draw_share_timestep_and_noise(monkeypatch):
    task, seen = trained_task(ToyBase()), []
    predict = task.denoiser.predict
    monkeypatch.setattr(
        task.denoiser, "predict", lambda x, t, c: (seen.append((x.clone(), t, c.context)), predict(x, t, c))[1]
    )
    ended(task, fisher_draws=2, temperature=1.0)
    assert len(seen) == 9  # one draw of two images, five prompts: all with a graph, and four without before that
    assert all(torch.equal(x, seen[0][0]) and torch.equal(t, seen[0][1]) for x, t, _ in seen)
    contexts = [context[0] for _, _, context in seen[:5]]
    assert torch.equal(contexts[0], task.prompt.context[0]) and torch.equal(contexts[1], task.base_prompt.context[0])
    assert len({context.numpy().tobytes() for context in contexts}) == 5


def test_temperature_is_given_or_calibrated_on_draws_of_its_own():
    task = trained_task(ToyBase())
    assert ended(task, temperature=0.37)[1][-1].values["temperature"] == 0.37
    ewc, records = ended(task)
    spreads = []
    for step in range(CALIBRATION_BATCHES):
        singles, prompts = draws_of(task, ewc.settings, True, "calibration", step, 2)
        with torch.no_grad():
            errors = torch.stack([torch.cat([s.error(prompt) for s in singles]) for prompt in prompts])
        spreads.append(calibrated_temperature(errors))
    assert records[-1].values["temperature"] == pytest.approx(sum(spreads) / CALIBRATION_BATCHES, rel=1e-5)


def test_penalty_and_its_gradient_by_hand():
    ewc = EWC(toy_settings(penalty_weight=0.1))
    theta = {"w": torch.tensor([4.0, 1.0], requires_grad=True)}
    adapter = SimpleNamespace(parameters=theta)
    assert ewc.penalty(adapter) is None  # the first task
    ewc.load_state_dict({"fisher.w": torch.tensor([2.0, 0.5]), "anchor.w": torch.tensor([1.0, 3.0])})
    penalty = ewc.penalty(adapter)
    assert penalty.item() == pytest.approx(0.1 * (2 * 9 + 0.5 * 4))
    penalty.backward()
    assert theta["w"].grad.tolist() == pytest.approx([1.2, -0.2])


def test_penalty_and_its_gradient_are_zero_at_the_anchor_only():
    task = trained_task(ToyBase())
    ewc, _ = ended(task, penalty_weight=3.0)
    penalty = ewc.penalty(task.adapter)
    penalty.backward()
    assert penalty.item() == 0 and all(p.grad.abs().max() == 0 for p in task.adapter.parameters.values())
    for parameter in task.adapter.parameters.values():
        parameter.data += 0.5  # in place: the anchor must be a copy
    expected = 3 * sum(float((0.25 * f).sum()) for f in ewc.fisher.values())
    assert ewc.penalty(task.adapter).item() == pytest.approx(expected, rel=1e-5) and expected > 0


def test_online_fisher_never_decreases_without_decay():
    first, second = trained_task(ToyBase(), seed=1), trained_task(ToyBase(), seed=2)
    ewc, _ = ended(first)
    before = {name: f.clone() for name, f in ewc.fisher.items()}
    ended(second, ewc=ewc)
    assert all((ewc.fisher[name] >= before[name]).all() for name in before)
    assert sum(float(f.sum()) for f in ewc.fisher.values()) == pytest.approx(2, rel=1e-4)  # one a task
    assert all(torch.equal(ewc.anchor[name], value) for name, value in second.adapter.parameters.items())


def test_decay_by_hand():
    first, second = trained_task(ToyBase(), seed=1), trained_task(ToyBase(), seed=2)
    ewc, _ = ended(first, fisher_decay=0.25)
    before = {name: f.clone() for name, f in ewc.fisher.items()}
    fresh = ended(second)[0].fisher
    ended(second, ewc=ewc)
    for name, fisher in ewc.fisher.items():
        torch.testing.assert_close(fisher, 0.25 * before[name] + fresh[name])


def test_end_of_the_task_leaves_theta_and_no_gradient():
    task = trained_task(ToyBase())
    before = {name: value.detach().clone() for name, value in task.adapter.parameters.items()}
    _, records = ended(task)
    assert all(
        torch.equal(value, before[name]) and value.grad is None for name, value in task.adapter.parameters.items()
    )
    values = records[-1].values
    assert 0 < values["dc_entropy"] < math.log(5) and 0 <= values["dc_accuracy"] <= 1
    assert values["dc_entropy"] == pytest.approx(
        sum(count * r.values["dc_entropy"] for count, r in zip((2, 2, 1), records[:-1], strict=True)) / 5
    )


def test_a_fisher_that_is_no_number_is_not_carried_on():
    task = trained_task(ToyBase())
    next(iter(task.adapter.parameters.values())).data[0, 0] = torch.nan
    with pytest.raises(ContinualLoraError, match=r"The Fisher .* should be made of numbers\. Their sum became nan\."):
        list(EWC(toy_settings()).end_task(task))
