"""Teaching one concept: the checks before, what it leaves alone, the same bytes every time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.toy import ENCODER, ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.adapters.kohya import from_kohya, kohya_prefixes
from trainer.denoiser import Conditioning
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.planning import largest_pass, task_record
from trainer.prompts import base_prompt
from trainer.recipes import RECIPES
from trainer.teach import _Training, teach

WORDS = ("fox", "cat", "dog")


def taught(root, words=WORDS, unet=None, **changes):
    """A sequence on the toy, each concept by a fresh view of the same base."""
    unet = unet or ToyUNet().requires_grad_(False)
    sequence = ConceptSequence.create(root, ToyBase(unet).fingerprint)
    for seed, word in enumerate(words):
        sequence = teach(ToyBase(unet), toy_concept(word, seed=seed), toy_settings(**changes), sequence)
    return sequence


def test_same_seed_same_bytes_whatever_ran_before(tmp_path):
    torch.manual_seed(1)
    taught(tmp_path / "first" / "pets")
    torch.manual_seed(2)
    np.random.seed(3)
    torch.randn(1000), np.random.rand(7)
    taught(tmp_path / "other" / "birds", ["robin"])
    taught(tmp_path / "second" / "pets")
    first, second = files_below(tmp_path / "first"), files_below(tmp_path / "second")
    assert len(first) == 3 + 3 * (4 + 3) and first == second  # lists and lock; four files and three images a task


def test_teaching_does_not_touch_the_global_generators(tmp_path):
    base, concept, settings = ToyBase(), toy_concept("fox"), toy_settings()
    torch.manual_seed(4)
    np.random.seed(4)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    teach(base, concept, settings, ConceptSequence.create(tmp_path, base.fingerprint))
    assert torch.equal(torch.get_rng_state(), before) and (np.random.get_state()[1] == numpy_before).all()


def test_another_seed_gives_another_lora(tmp_path):
    one, two = taught(tmp_path / "one", ["fox"], seed=0), taught(tmp_path / "two", ["fox"], seed=1)
    assert any(not torch.equal(value, two.lora(two.tasks[0])[name]) for name, value in one.lora(one.tasks[0]).items())


def test_a_concept_that_the_sequence_ends_with_is_found_in_it(tmp_path):
    """As when a graph opens a sequence, teaches it a concept, and is queued again."""
    unet = ToyUNet().requires_grad_(False)
    sequence = taught(tmp_path, ["fox", "cat"], unet)
    opened = ConceptSequence.open(tmp_path)
    for seed, word in enumerate(["fox", "cat"]):
        base = ToyBase(unet)
        again = teach(base, toy_concept(word, seed=seed), toy_settings(), opened)
        assert again == sequence.up_to(seed + 1) and base.passes == 0
    dog = teach(ToyBase(unet), toy_concept("dog", seed=2), toy_settings(), again)
    assert [task.token for task in dog.tasks] == ["fox", "cat", "dog"]
    for changes in ({"seed": 9}, {"steps": 5}):  # another training under a token that is in use
        with pytest.raises(ContinualLoraError, match="should be new to"):
            teach(ToyBase(unet), toy_concept("cat", seed=1), toy_settings(**changes), opened)


def test_files_of_earlier_concepts_never_change(tmp_path):
    unet = ToyUNet().requires_grad_(False)
    sequence, before = taught(tmp_path, ["fox"], unet), files_below(tmp_path / "tasks")
    fox = sequence.tokens()["fox"][ENCODER]
    for seed, word in enumerate(["cat", "dog"], start=1):
        sequence = teach(ToyBase(unet), toy_concept(word, seed=seed), toy_settings(), sequence)
        after = files_below(tmp_path / "tasks")
        assert {name: after[name] for name in before} == before
        before = after
    assert torch.equal(sequence.tokens()["fox"][ENCODER], fox)
    assert list(sequence.tokens()) == ["fox", "cat", "dog"]


def test_the_base_is_the_same_to_the_bit_after_success_failure_and_cancel(tmp_path):
    base = ToyBase()
    before = {name: value.clone() for name, value in base.original.state_dict().items()}
    names = [name for name, _ in base.original.named_modules()]
    sequence = ConceptSequence.create(tmp_path, base.fingerprint)

    def attempt(on_predict, expected):
        view = ToyBase(base.original, on_predict=on_predict)
        if expected is None:
            teach(view, toy_concept("fox"), toy_settings(), sequence)
        else:
            with pytest.raises(expected):
                teach(view, toy_concept("fox"), toy_settings(), sequence)
        state = base.original.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in before.items()) and len(state) == len(before)
        assert [name for name, _ in base.original.named_modules()] == names
        assert view.fingerprint == base.fingerprint == ToyBase(base.original).fingerprint

    attempt(lambda count: 1 / (2 - count), ZeroDivisionError)
    attempt(lambda count: (_ for _ in ()).throw(KeyboardInterrupt), KeyboardInterrupt)
    attempt(lambda count: None, None)


def test_the_embedded_base_is_the_same_to_the_bit(tmp_path, tiny):
    modules = (tiny.weights.unet, tiny.weights.text, tiny.weights.autoencoder)
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in modules]
    teach(tiny, toy_concept("fox"), toy_settings(steps=1, fisher_draws=1), ConceptSequence(tmp_path, tiny.fingerprint))
    for module, state in zip(modules, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_a_token_may_be_called_as_a_file_of_the_task(tmp_path):
    sequence, plain = taught(tmp_path / "files", ["lora", "methods"]), taught(tmp_path / "plain", ["fox", "cat"])
    for found, expected in zip(sequence.tasks, plain.tasks, strict=True):
        assert set(sequence.lora(found)) == set(plain.lora(expected))
        assert sequence.tokens()[found.token][ENCODER].shape == (3,)
    assert set(sequence.method_state()) == set(plain.method_state())


def test_a_task_starts_where_the_last_one_ended(tmp_path):
    unet = ToyUNet().requires_grad_(False)
    sequence = taught(tmp_path, ["fox"], unet)
    still = toy_settings(learning_rate=0.0, token_learning_rate=0.0)
    after = teach(ToyBase(unet), toy_concept("cat", seed=1), still, sequence)
    first, second = (after.lora(task) for task in after.tasks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert after.log(after.tasks[1])["penalty"] == [0.0] * 4


def test_what_is_saved_is_what_the_model_carries(tmp_path):
    base = ToyBase()
    sequence = teach(base, toy_concept("fox"), toy_settings(), ConceptSequence(tmp_path, base.fingerprint))
    layers = ["middle_block.1.attn2.to_k", "middle_block.1.attn2.to_v"]
    lora = from_kohya(sequence.lora(sequence.tasks[0]), layers, kohya_prefixes(base.original))
    for name in layers:
        live = base.unet.get_submodule(name)
        torch.testing.assert_close(live.get_delta_weight("continual"), lora[name].delta)
    assert sum(factors.delta.square().sum() for factors in lora.values()) > 1e-4
    token = load_file(sequence.folder(sequence.tasks[0]) / "embeddings" / "fox.safetensors")
    assert {name: value.shape for name, value in token.items()} == {ENCODER: (1, 3)}


def test_prompts_are_encoded_once_where_the_token_is_frozen(tmp_path):
    base = ToyBase()
    frozen = toy_settings(token_learning_rate=0.0, recipe="lora", steps=6)
    teach(base, toy_concept("fox"), frozen, ConceptSequence(tmp_path, base.fingerprint))
    assert base.encoded.count("photo of a <fox> animal") == 2  # for the steps, and for the phases after them


class ToyJointBase(ToyBase):
    """Text and image attend to one another: prompts of different lengths have no common batch."""

    def encode_prompt(self, prompt, tokens):
        context = super().encode_prompt(prompt, tokens).context
        return Conditioning(context.repeat(1, 1 + len(prompt) // 40, 1), joint=True)


LONG = "a <fox> asleep on a red chair beside a window"
TOO_LONG = "be of one length. These are 6, 12 pieces long"


@pytest.mark.parametrize(
    ("changes", "captions", "refused"),
    [
        ({"batch_size": 2}, ["a <fox>", "a <fox> asleep", LONG], True),
        ({"batch_size": 2, "token_learning_rate": 0.0}, ["a <fox>", "a <fox> asleep", LONG], True),
        ({"batch_size": 2, "validation_every": 2, "validation_images": 1}, ["", "", LONG], True),
        ({"batch_size": 2, "caption_dropout": 0.1}, [LONG, LONG, LONG], True),
        ({"batch_size": 2}, [LONG, LONG, LONG], False),
        ({"batch_size": 1}, ["a <fox>", "a <fox> asleep", LONG], False),
    ],
)
def test_captions_that_cannot_meet_in_a_batch_are_refused_before_the_first_step(tmp_path, changes, captions, refused):
    base, settings = ToyJointBase(), toy_settings(recipe="lora", **changes)
    arguments = (
        base,
        replace(toy_concept("fox"), captions=captions),
        settings,
        ConceptSequence(tmp_path, base.fingerprint),
    )
    if refused:
        with pytest.raises(ContinualLoraError, match=TOO_LONG):
            teach(*arguments)
        assert base.passes == 0 and list(files_below(tmp_path)) == ["writing.lock"]
    else:
        assert len(teach(*arguments).tasks) == 1


def test_each_image_and_its_mirror_are_trained_with_their_own_caption(tmp_path):
    base = ToyBase()
    concept = replace(toy_concept("fox", count=2), captions=["a sleeping <fox>", ""])
    parts = (base, concept, toy_settings(flip=True), ConceptSequence(tmp_path, base.fingerprint))
    training = _Training(*parts, task_record(parts[3], concept, parts[2]), lambda record: None)
    latents = training.data.latents.flatten(1)
    torch.testing.assert_close(latents[2:], latents[:2].flip(-1))
    assert (latents[:, 0] - latents[:, 1]).abs().min() > 0.01
    contexts = training.encode.of_images(training.data.prompts)(torch.tensor([0, 1, 2, 3]), torch.Generator()).context
    tokens = {"fox": training.state.token}
    for index, prompt in enumerate(["a sleeping <fox>", "photo of a <fox> animal"] * 2):
        assert torch.equal(contexts[index], base.encode_prompt(prompt, tokens).context[0])


@pytest.mark.parametrize(
    ("noun", "given", "expected"),
    [
        ("animal", "", "photo of a person"),
        ("Person", "", "photo of a tree"),
        ("girl", "", "photo of a tree"),
        ("young woman ", "", "photo of a tree"),
        ("children", "", "photo of a tree"),
        ("Kids", "", "photo of a tree"),
        ("manatee", "", "photo of a person"),
        ("girl", "a red car", "a red car"),
    ],
)
def test_base_concept(noun, given, expected):
    assert base_prompt(given, noun) == expected


def test_scores_compare_the_base_concept_and_the_earlier_prompts(tmp_path):
    unet = ToyUNet().requires_grad_(False)
    sequence = taught(tmp_path, ["fox", "cat"], unet)
    base = ToyBase(unet)
    teach(base, toy_concept("dog", seed=2), toy_settings(), sequence)
    asked = ("photo of a person", *(f"photo of a <{word}> animal" for word in WORDS))
    assert [base.encoded.count(prompt) for prompt in asked[:3]] == [1, 1, 1] and set(base.encoded) == set(asked)


WRONG = {
    "base": ({}, {"unet": ToyUNet(2.0)}, "dog", ["base model it was trained on", "another one", "Load the model"]),
    "rank": ({"rank": 3}, {}, "dog", ['"rank" should be 2', "set to rank 3", 'Set "rank" to 2']),
    "alpha": ({"alpha": 1.0}, {}, "dog", ['"alpha" should be 2', "set to alpha 1", 'Set "alpha" to 2']),
    "token": ({}, {}, "cat", ['"token" should be new', "stands for its concept 2, cat", "another token"]),
    "recipe": ({"recipe": "magic"}, {}, "dog", ['"recipe" should be one of lora', "`magic`", "Choose one"]),
}


@pytest.mark.parametrize(("changes", "base", "token", "facts"), WRONG.values(), ids=WRONG)
def test_errors_come_before_training_with_three_facts(changes, base, token, facts, tmp_path):
    unet = ToyUNet().requires_grad_(False)
    sequence = taught(tmp_path / "pets", ["fox", "cat"], unet)
    before, view = files_below(tmp_path), ToyBase(**({"unet": unet} | base))
    with pytest.raises(ContinualLoraError) as caught:
        teach(view, toy_concept(token, seed=5), toy_settings(**changes), sequence)
    positions = [str(caught.value).find(fact) for fact in facts]
    assert -1 not in positions and positions == sorted(positions), str(caught.value)
    assert view.passes == 0 and files_below(tmp_path) == before


def test_alpha_zero_means_the_rank_and_may_be_written_out(tmp_path):
    unet = ToyUNet().requires_grad_(False)
    sequence = taught(tmp_path, ["fox"], unet)
    assert len(teach(ToyBase(unet), toy_concept("cat", seed=1), toy_settings(alpha=2.0), sequence).tasks) == 2


def test_a_model_without_cross_attention_is_refused(tmp_path):
    base = ToyBase()
    base.unet = torch.nn.Linear(2, 2)
    with pytest.raises(ContinualLoraError, match="This model is a `Linear` without such layers"):
        teach(base, toy_concept("fox"), toy_settings(), ConceptSequence(tmp_path, base.fingerprint))


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("changes", [{}, {"prior_images": 2}, {"num_prompts": 2}, {"num_prompts": 4}])
def test_room_is_asked_for_the_largest_pass(tmp_path, recipe, low_memory, changes):
    class Counted(ToyBase):
        largest = 0

        def predict(self, x_t, t, conditioning):
            if torch.is_grad_enabled():
                self.largest = max(self.largest, len(x_t))
            return super().predict(x_t, t, conditioning)

        def make_room(self, shape, checkpointed):
            self.asked = shape[0]

    settings = toy_settings(recipe=recipe, low_memory=low_memory, batch_size=3, **changes)
    if recipe == "textual_inversion":
        settings = replace(settings, token_learning_rate=0.01)
    unet = ToyUNet().requires_grad_(False)
    sequence = ConceptSequence.create(tmp_path, ToyBase(unet).fingerprint)
    for seed, word in enumerate(("fox", "cat", "dog", "owl")):
        base = Counted(unet)
        sequence = teach(base, toy_concept(word, seed=seed), settings, sequence)
        both = 2 * 3 if settings.prior_images else 0  # its graph and that of the concept's images are there together
        assert max(base.largest, both) == base.asked == largest_pass(settings, seed)


def test_room_is_made_before_the_adapter_is_put_in(tmp_path):
    class Asked(ToyBase):
        def make_room(self, shape, checkpointed):
            assert not any(parameter.requires_grad for parameter in self.unet.parameters())
            self.room = tuple(shape), checkpointed
            self.unet = ToyBase(self.original).unet  # a host's view is taken anew

    base = Asked()
    sequence = ConceptSequence.create(tmp_path, base.fingerprint)
    taught = teach(base, toy_concept("fox"), toy_settings(batch_size=2, gradient_checkpointing=True), sequence)
    assert base.room == ((2, 1, 1, 2), True) and len(taught.tasks) == 1
