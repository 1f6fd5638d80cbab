"""Pictures of a running training: what they show, when, and that the training does not notice."""

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.apply import apply_sequence
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.images import decode, to_pil
from trainer.sampling import generate
from trainer.teach import teach
from trainer.training.samples import is_due, sample_prompt

UNET = ToyUNet().requires_grad_(False)


class Cancel(BaseException):
    pass


def run(root, base=None, on_step=lambda record: None, draw=None, **changes):
    settings = toy_settings(**{"recipe": "lora", "steps": 5, "sample_every": 2, "seed": 3, **changes})
    base = base or ToyBase(UNET)
    return teach(base, toy_concept("fox"), settings, ConceptSequence(root, base.fingerprint), on_step, draw=draw)


def pictures_of(done):
    return done.root / "samples" / done.tasks[0].folder


def names(done):
    return sorted(path.name for path in pictures_of(done).iterdir())


def test_when():
    assert [is_due(step, toy_settings(steps=5, sample_every=2)) for step in range(6)] == [0, 0, 1, 0, 1, 1]
    assert not any(is_due(step, toy_settings(steps=5)) for step in range(6))


def test_files_and_records(tmp_path):
    records = []
    done = run(tmp_path, on_step=records.append)
    assert names(done) == ["step_000002.png", "step_000004.png", "step_000005.png"]
    for record in records:
        assert (record.picture is not None) == (record.step in (2, 4, 5))
        if record.picture:
            saved = decode(pictures_of(done) / f"step_{record.step:06d}.png")
            assert saved.shape == (3, 8, 8) and to_pil(saved).tobytes() == record.picture.tobytes()


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.6}, {"optimizer": "adamw_schedulefree"}])
def test_the_last_picture_is_what_the_finished_task_draws(changes, tmp_path, random_tiny_folder):
    rates = {"learning_rate": 0.3, "token_learning_rate": 0.3}
    done = run(tmp_path, TinyBase(random_tiny_folder), sample_every=1, steps=2, **rates, **changes)
    fresh = TinyBase(random_tiny_folder)
    with torch.no_grad():
        tokens = apply_sequence(fresh, done)
        prompt, empty = fresh.encode_prompt("photo of a <fox> animal", tokens), fresh.encode_prompt("", tokens)
        expected = to_pil(generate(fresh, prompt, empty, 1, seed=3)[0])
    first, last = (decode(pictures_of(done) / f"step_00000{step}.png") for step in (1, 2))
    assert to_pil(last).tobytes() == expected.tobytes()
    assert last.std() > 0.01 and (first - last).abs().max() > 0.01  # neither flat nor always the same


def test_what_is_drawn():
    concept = toy_concept("fox", noun="red animal")
    assert sample_prompt(concept, toy_settings(sample_prompt=" ")) == "photo of a <fox> red animal"
    filled = sample_prompt(concept, toy_settings(sample_prompt="<{token}>, a {class_noun}, on {grass}"))
    assert filled == "<fox>, a red animal, on {grass}"


def test_the_prompt_is_asked_for_with_the_token_as_it_is(tmp_path):
    seen = []

    def draw(prompt, empty, shape):
        seen.append((prompt.context[0], empty.context[0], shape))
        return to_pil(torch.zeros(3, 8, 8))

    done = run(tmp_path, draw=draw, sample_prompt="a <{token}>")
    tokens = done.tokens()
    prompts, empties, shapes = zip(*seen, strict=True)
    assert torch.equal(prompts[-1], ToyBase(UNET).encode_prompt("a <fox>", tokens).context[0])
    assert not torch.equal(prompts[0], prompts[-1]) and not prompts[0].requires_grad
    assert all(torch.equal(e, ToyBase(UNET).encode_prompt("", {}).context[0]) for e in empties)
    assert set(shapes) == {torch.Size((1, 1, 2))}


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.6}, {"optimizer": "adamw_schedulefree"}])
def test_the_task_is_the_same_with_and_without(changes, tmp_path):
    with_, without = run(tmp_path / "with", **changes), run(tmp_path / "without", sample_every=0, **changes)
    assert with_.head == without.head and not (without.root / "samples").exists()
    folders = (done.folder(done.tasks[0]) for done in (with_, without))
    one, other = (files_below(folder) for folder in folders)
    assert one == other


@pytest.mark.parametrize("count", [1, 2 + 10, 2 + 25 + 1, 2 + 25 + 2 + 1, 5 + 3 * 25])
def test_cancelled_inside_a_pass_and_resumed_to_the_bit(count, tmp_path):
    """In a step, in the first picture, in the step after it, in the second picture, in the very last pass."""

    def stop(now):
        if now == count:
            raise Cancel

    whole = ToyBase(UNET)
    run(tmp_path / "whole", whole, ema_decay=0.5)
    assert whole.passes == 5 + 3 * 25
    with pytest.raises(Cancel):
        run(tmp_path / "cut", ToyBase(UNET, on_predict=stop), ema_decay=0.5)
    run(tmp_path / "cut", ema_decay=0.5)
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")


def test_a_rough_preview_is_refused_outside_of_comfyui_before_training(tmp_path):
    base = ToyBase(UNET)
    with pytest.raises(ContinualLoraError, match=r'"sample_with_vae" should be on .* It is off\. Switch it on'):
        run(tmp_path, base, sample_with_vae=False)
    assert base.passes == 0
    run(tmp_path, base, sample_with_vae=False, sample_every=0)
