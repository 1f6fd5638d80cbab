"""The validation error: its draws by hand, on what it is measured, and that the training does not notice."""

from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.classifier import stratified_timesteps
from trainer.concept import prepare
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.losses.denoising import NoisedBatch
from trainer.planning import task_record
from trainer.task import step_rng
from trainer.teach import _Training, teach
from trainer.training.validation import DRAWS, is_due, split_off

UNET = ToyUNet().requires_grad_(False)
CONCEPT = replace(toy_concept("fox", count=5), captions=["red", "", "a <fox>", "blue", "old"])


class Cancel(BaseException):
    pass


def run(root, base=None, concept=CONCEPT, on_step=lambda record: None, **changes):
    settings = toy_settings(**{"recipe": "lora", "steps": 5, "validation_every": 2, **changes})
    base = base or ToyBase(UNET)
    return teach(base, concept, settings, ConceptSequence(root, base.fingerprint), on_step)


def made(root, base, **changes):
    settings = toy_settings(**{"recipe": "lora", "steps": 5, "validation_every": 2, **changes})
    sequence = ConceptSequence(root, base.fingerprint)
    record = task_record(sequence, CONCEPT, settings)
    return _Training(base, CONCEPT, settings, sequence, record, lambda record: None)


def measured_by_hand(base, tokens, concept, masks=None):
    """All draws of all images one by one."""
    rng = step_rng("0/1", "validation", 0)
    times = stratified_timesteps(DRAWS, rng)
    latents = base.encode_images(prepare(concept, 8)[0])
    noises = torch.randn(DRAWS, *latents.shape, generator=rng)
    errors = [
        NoisedBatch(base, latents[i : i + 1], times[d : d + 1], noises[d, i : i + 1]).error(
            base.encode_prompt(concept.prompts[i], tokens)
        )
        for d in range(DRAWS)
        for i in range(len(latents))
    ]
    return torch.cat(errors).mean().item()


@pytest.mark.parametrize("held_back", [0, 2])
def test_the_error_by_hand_before_the_first_step_and_after_the_last(held_back, tmp_path):
    base = ToyBase(UNET)
    measured_on = split_off(CONCEPT, held_back)[held_back > 0]
    first = measured_by_hand(ToyBase(UNET), {"fox": base.word_vectors("animal")}, measured_on)
    done = run(tmp_path, base, validation_images=held_back)
    last = measured_by_hand(base, done.tokens(), measured_on)
    log = done.log(done.tasks[0])
    assert log["validation_step"] == [0, 2, 4, 5]
    assert log["validation_loss"][0] == pytest.approx(first, rel=1e-5)
    assert log["validation_loss"][-1] == pytest.approx(last, rel=1e-5) and abs(first - last) > 1e-4
    assert done.tasks[0].values["validation_loss"] == log["validation_loss"][-1]


def test_records_carry_it():
    assert [is_due(step, toy_settings(steps=5, validation_every=2)) for step in range(6)] == [1, 0, 1, 0, 1, 1]
    assert not any(is_due(step, toy_settings(steps=5)) for step in range(6))


def test_it_is_reported_in_the_step_it_was_measured_after(tmp_path):
    records = []
    done = run(tmp_path, on_step=records.append)
    values = [record.values.get("validation_loss") for record in records if record.phase == "train"]
    _, second, fourth, last = done.log(done.tasks[0])["validation_loss"]
    assert values == [None, second, None, fourth, last]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"optimizer": "adamw_schedulefree"}])
def test_the_training_is_the_same_with_and_without(changes, tmp_path):
    runs = [run(tmp_path / str(every), validation_every=every, **changes) for every in (0, 1)]
    plain, other = (files_below(done.folder(done.tasks[0])) for done in runs)
    assert {name for name in plain if plain[name] != other[name]} == {"lora.safetensors", "log.json"}  # its metadata
    one, two = (done.lora(done.tasks[0]) for done in runs)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    logs = [done.log(done.tasks[0]) for done in runs]
    assert {name: logs[1][name] for name in logs[0]} == logs[0] and len(logs[1]) == len(logs[0]) + 2


def test_images_held_back_are_in_no_batch(tmp_path):
    training = made(tmp_path, ToyBase(UNET), validation_images=2, flip=True, rescale=True)
    taught, held_back = split_off(CONCEPT, 2)
    assert (len(taught.images), len(held_back.images)) == (3, 2)
    every = ToyBase(UNET).encode_images(prepare(held_back, 8)[0])
    assert (
        torch.equal(training.data.validation.latents, every) and training.data.validation.prompts == held_back.prompts
    )
    for pictures in (every, every.flip(-1)):
        distances = (training.data.latents[:, None] - pictures[None]).abs().amax((2, 3, 4))
        assert distances.min() > 1e-4
    assert len(training.data.prompts) == len(training.data.latents) == 2 * 3 * 4
    assert len(training._trained_task().latents) == 6  # nor does the Fisher see them


def test_masks_of_held_back_images_count(tmp_path):
    masks = [None, None, None, None, torch.zeros(1, 8, 8)]
    masks[4][:, :, :4] = 1
    concept = replace(CONCEPT, masks=masks)
    masked, plain = (run(tmp_path / str(i), concept=c, validation_images=1) for i, c in enumerate((concept, CONCEPT)))
    assert masked.log(masked.tasks[0])["validation_loss"][0] != plain.log(plain.tasks[0])["validation_loss"][0]


def test_the_average_is_measured_and_not_the_last_step(tmp_path):
    raw, averaged = run(tmp_path / "raw"), run(tmp_path / "ema", ema_decay=0.9)
    raw, averaged = (done.log(done.tasks[0])["validation_loss"] for done in (raw, averaged))
    assert raw[0] == averaged[0] and raw[-1] != averaged[-1]


MEASUREMENT = DRAWS * 3  # passes: five images, two at a time


@pytest.mark.parametrize("count", [3, MEASUREMENT + 2, MEASUREMENT + 5, 5 + 4 * MEASUREMENT])
@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"optimizer": "adamw_schedulefree"}])
def test_cancelled_inside_a_pass_and_resumed_to_the_bit(changes, count, tmp_path):
    """In the first measurement, in a step, in the second measurement, in the very last pass."""

    def stop(now):
        if now == count:
            raise Cancel

    whole = ToyBase(UNET)
    run(tmp_path / "whole", whole, **changes)
    assert whole.passes == 5 + 4 * MEASUREMENT
    with pytest.raises(Cancel):
        run(tmp_path / "cut", ToyBase(UNET, on_predict=stop), **changes)
    run(tmp_path / "cut", **changes)
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")


def test_holding_back_everything_is_refused_before_training(tmp_path):
    base = ToyBase(UNET)
    with pytest.raises(
        ContinualLoraError, match=r'"validation_images" should leave .* It is 5, and there are 5\. Lower'
    ):
        run(tmp_path, base, validation_images=5)
    assert base.passes == 0
