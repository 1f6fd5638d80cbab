"""Prior preservation: what the base draws, what it adds to the loss, that it holds the class, and resuming."""

import pytest
import torch

from tests.toy import KEYS, VALUES, ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.adapters.lora import LoraAdapter
from trainer.apply import apply_sequence
from trainer.disk.sequence import ConceptSequence
from trainer.loop import train_concept
from trainer.planning import task_record
from trainer.sampling import sample
from trainer.task import StepRecord, step_rng
from trainer.teach import _Training, teach
from trainer.training.buckets import Bucket
from trainer.training.prior import Prior, draw_prior, prior_prompt
from trainer.training.state import TrainState

UNET = ToyUNet().requires_grad_(False)
SHAPE = torch.Size((1, 1, 2))
LATENTS = torch.tensor([[0.5, -1.0], [1.5, 0.25], [-0.75, 2.0]]).view(3, 1, 1, 2)
DRAWN = torch.tensor([[0.1, 0.9], [-1.2, 0.3]]).view(2, 1, 1, 2)


class Cancel(BaseException):
    pass


def ignore(record):
    pass


def drawn(base, seed, on_step=ignore):
    prompt, empty = base.encode_prompt("photo of a animal", {}), base.encode_prompt("", {})
    return draw_prior(base, prompt, empty, 3, SHAPE, 2, seed, on_step)


def test_the_class_noun_is_asked_for_as_in_the_concepts_prompt():
    assert prior_prompt(" animal ") == "photo of a animal"


def test_the_base_draws_what_the_sampler_makes_of_the_seed():
    base, records = ToyBase(), []
    latents = drawn(base, "0/1", records.append)
    noise = torch.randn(3, *SHAPE, generator=step_rng("0/1", "prior", 0))
    prompt, empty = base.encode_prompt("photo of a animal", {}), base.encode_prompt("", {})
    assert torch.equal(latents, torch.cat([sample(base, prompt, empty, part) for part in noise.split(2)]))
    assert not latents.requires_grad
    assert records == [StepRecord("prior", step, 50, 0.0) for step in range(1, 51)]  # two parts of 25 steps
    assert not torch.equal(latents, drawn(base, "1/1"))


@pytest.mark.parametrize(
    ("recipe", "adapter"),
    [("lora", "lora"), ("lora_ewc", "vera"), ("c_lora", "lora"), ("custom_diffusion", "lora")],
)
def test_the_base_alone_draws_also_at_a_later_task(recipe, adapter, tmp_path):
    settings = toy_settings(recipe=recipe, adapter=adapter, prior_images=3)
    sequence = ConceptSequence.create(tmp_path, ToyBase(UNET).fingerprint)
    sequence = teach(ToyBase(UNET), toy_concept("fox"), settings, sequence)
    concept = toy_concept("cat", seed=1)
    record = task_record(sequence, concept, settings)
    training = _Training(ToyBase(UNET), concept, settings, sequence, record, ignore)
    assert training.state.adapter.norm() > 0 or recipe == "c_lora"  # a fresh LoRA on the sum of the earlier ones
    (expected,) = ToyBase().encode_prompt("photo of a animal", {}).context
    assert torch.equal(training.data.prior.prompt.context[0], expected)
    assert torch.equal(training.data.prior.latents, drawn(ToyBase(UNET), "0/2"))


def error_by_hand(x_0, t, noise, words):
    """Mean over the two numbers of (noise - prediction)^2, for the toy's base: mean over words of K c * x_t + V c."""
    signal = 1 - (t + 1) / 1001
    x_t = signal**0.5 * x_0 + (1 - signal) ** 0.5 * noise
    keys, values = torch.tensor(KEYS), torch.tensor(VALUES)
    prediction = torch.stack([keys @ word * x_t + values @ word for word in words]).mean(0)
    return ((noise - prediction) ** 2).mean()


def test_loss_of_a_step_is_the_concepts_plus_the_priors_by_hand():
    base, settings = ToyBase(), toy_settings()
    state = TrainState(LoraAdapter(base.unet, 2, 2.0, torch.Generator()), base.word_vectors("animal"), settings)
    concept, noun = (base.encode_prompt(text, {}) for text in ("photo of a red animal", "photo of a animal"))
    rng, parts = step_rng("0/1", "train", 0), []
    for latents, prompt in ((LATENTS, concept), (DRAWN, noun)):
        indices = torch.randint(len(latents), (2,), generator=rng)
        t, noise = torch.randint(1000, (2,), generator=rng), torch.randn(2, 1, 1, 2, generator=rng)
        errors = [
            error_by_hand(latents[i].flatten(), time, eps.flatten(), prompt.context[0])
            for i, time, eps in zip(indices, t, noise, strict=True)
        ]
        parts.append(torch.stack(errors).mean().item())
    steps = train_concept(
        base, [Bucket(LATENTS)], lambda indices, rng: concept.expand(2), state, [], settings, "0/1", Prior(DRAWN, noun)
    )
    assert next(steps).loss == pytest.approx(sum(parts), rel=1e-5) and min(parts) > 0.01


def taught(root, on_step=ignore, base=None, **changes):
    """One concept on the toy."""
    settings = toy_settings(**{"prior_images": 3, "recipe": "lora", **changes})
    sequence = ConceptSequence.create(root, ToyBase(UNET).fingerprint)
    return teach(base or ToyBase(UNET), toy_concept("fox"), settings, sequence, on_step)


def test_without_prior_images_the_base_draws_nothing(tmp_path):
    base, records = ToyBase(UNET), []
    taught(tmp_path, records.append, base, prior_images=0)
    assert base.passes == 4 and {record.phase for record in records} == {"train"}
    assert "photo of a animal" not in base.encoded


def test_what_the_model_says_of_the_class_stays_nearer_to_the_base(tmp_path):
    x_t = torch.randn(50, 1, 1, 2, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def answers(base):
        prompt = base.encode_prompt("photo of a animal", {}).expand(50)
        return base.predict(x_t, torch.full((50,), 500), prompt)

    def moved(prior_images):
        base = ToyBase(UNET)
        before = answers(base)
        apply_sequence(base, taught(tmp_path / str(prior_images), steps=100, batch_size=8, prior_images=prior_images))
        return float((answers(base) - before).square().mean())

    assert moved(100) < 0.5 * moved(0)


def test_stopped_at_any_step_and_resumed_to_the_bit(tmp_path):
    records = []
    taught(tmp_path / "whole", records.append)
    assert [record.phase for record in records] == ["prior"] * 50 + ["train"] * 4
    for count in (1, 26, 50, 51, 53, 54):
        root, seen = tmp_path / str(count), []

        def stop(record, seen=seen, count=count):
            seen.append(record)
            if len(seen) == count:
                raise Cancel

        with pytest.raises(Cancel):
            taught(root, stop)
        assert (root / "partial").exists() == (count > 50)  # before the first step there is nothing to keep
        resumed = []
        taught(root, resumed.append)
        assert [record.phase for record in resumed].count("train") == 4 - max(0, count - 50)
        assert files_below(root) == files_below(tmp_path / "whole"), count


def test_stopped_again_while_the_base_draws_keeps_what_was_trained(tmp_path):
    for phase, step in (("train", 2), ("prior", 7)):

        def stop(record, phase=phase, step=step):
            if (record.phase, record.step) == (phase, step):
                raise Cancel

        with pytest.raises(Cancel):
            taught(tmp_path / "cut", stop)
    resumed = []
    taught(tmp_path / "cut", resumed.append)
    assert [record.step for record in resumed if record.phase == "train"] == [3, 4]
    taught(tmp_path / "whole")
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")
