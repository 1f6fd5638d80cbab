"""What every recipe must do: teach concept after concept, resume, carry a state that does not grow."""

import math

import pytest
import torch
from safetensors.torch import load_file

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.apply import apply_sequence
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.recipes import RECIPES, build_methods, settings_by_recipe
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


class Cancel(BaseException):
    pass


def taught(root, recipe, words=("fox", "cat"), new_base=lambda: ToyBase(UNET), **changes):
    """A sequence of several concepts and the records of each."""
    sequence, records = ConceptSequence.create(root, new_base().fingerprint), []
    for seed, word in enumerate(words):
        records.append([])
        concept = toy_concept(word, seed=seed, count=2)
        sequence = teach(new_base(), concept, toy_settings(recipe=recipe, **changes), sequence, records[-1].append)
    return sequence, records


def sizes(file):
    return {name: (value.shape, value.dtype) for name, value in load_file(file).items()}


@each_recipe
@pytest.mark.parametrize("base", ["toy", "tiny"])
def test_two_concepts(recipe, base, tmp_path, random_tiny_folder):
    new_base = (lambda: ToyBase(UNET)) if base == "toy" else (lambda: TinyBase(random_tiny_folder))
    few = {} if base == "toy" else {"steps": 2, "fisher_draws": 2, "learning_rate": 0.01, "temperature": 0.01}
    sequence, records = taught(tmp_path, recipe, new_base=new_base, **few)
    assert [task.token for task in sequence.tasks] == ["fox", "cat"]
    assert {task.recipe for task in sequence.tasks} == {recipe}
    for task, steps in zip(sequence.tasks, records, strict=True):
        log, train = sequence.log(task), [record for record in steps if record.phase == "train"]
        assert [record.loss for record in train] == log["loss"] and all(map(math.isfinite, log["loss"]))
        assert len(train) == task.settings["steps"] == len(log["adapter_norm"])
        assert (task.values["adapter_norm"] > 0) == (RECIPES[recipe].adapter != "token_only")
    first, second = (sequence.log(task)["penalty"] for task in sequence.tasks)
    assert first == [0.0] * len(first) and second[0] == 0.0  # no past, and then at the anchor
    holds = {"ewc", "c_lora"} & set(RECIPES[recipe].methods)
    assert all(value > 0 for value in second[1:]) if holds else second == first
    one, two = (sequence.lora(task) for task in sequence.tasks)
    assert any(not torch.equal(value, two[name]) for name, value in one.items()) or not (one or two)


@each_recipe
def test_state_does_not_grow_with_the_concepts(recipe, tmp_path):
    sequence, _ = taught(tmp_path, recipe, ("fox", "cat", "dog", "owl"))
    folders = [sequence.folder(task) for task in sequence.tasks]
    there = {"lora": RECIPES[recipe].adapter != "token_only", "methods": "ewc" in RECIPES[recipe].methods}
    for name in ("lora.safetensors", "methods.safetensors"):
        assert {(folder / name).exists() for folder in folders} == {there[name.split(".")[0]]}
        if (folders[0] / name).exists():
            assert sizes(folders[0] / name) == sizes(folders[3] / name)


@each_recipe
@pytest.mark.parametrize("point", [1, 3, -1])
def test_cancelled_and_resumed_to_the_bit(recipe, point, tmp_path):
    whole, records = taught(tmp_path / "whole", recipe)
    target = point if point > 0 else len(records[1])
    sequence, _ = taught(tmp_path / "cut", recipe, ("fox",))
    seen, parts = [], (toy_concept("cat", seed=1, count=2), toy_settings(recipe=recipe))

    def cancel(record):
        seen.append(record)
        if len(seen) == target:
            raise Cancel

    with pytest.raises(Cancel):
        teach(ToyBase(UNET), *parts, sequence, cancel)
    assert teach(ToyBase(UNET), *parts, sequence).head == whole.head
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")


@each_recipe
def test_every_recipe_explains_itself(recipe):
    text = RECIPES[recipe].help
    assert text.endswith(".") and len(text) > 20
    assert list(build_methods(toy_settings(recipe=recipe))) == list(RECIPES[recipe].methods)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ContinualLoraError) as caught:
        build_methods(toy_settings(recipe="magic"))
    text = str(caught.value)
    assert all(name in text for name in RECIPES) and text.endswith("It is `magic`. Choose one of them.")


def test_a_stronger_penalty_keeps_the_lora_closer_to_its_anchor(tmp_path):
    """What all of this is for: the second concept moves the first one's weights less."""

    def moved(weight):
        sequence, _ = taught(tmp_path / str(weight), "lora_ewc", penalty_weight=weight, steps=20)
        one, two = (sequence.lora(task) for task in sequence.tasks)
        return sum(float((two[name] - value).square().sum()) for name, value in one.items())

    assert moved(100.0) < 0.5 * moved(1.0) < 0.5 * moved(0.0)


@pytest.mark.parametrize("recipe", ["custom_diffusion", "textual_inversion", "c_lora"])
def test_another_adapter_than_the_sequences_own_is_refused(recipe, tmp_path):
    sequence, _ = taught(tmp_path, "lora", ("fox",))
    with pytest.raises(
        ContinualLoraError, match=r"should train what its concepts did \(lora\).*Choose a recipe such as"
    ):
        teach(ToyBase(UNET), toy_concept("cat"), toy_settings(recipe=recipe), sequence)


def test_textual_inversion_without_a_rate_has_nothing_to_train(tmp_path):
    settings = toy_settings(recipe="textual_inversion", token_learning_rate=0.0)
    with pytest.raises(ContinualLoraError, match=r'"token_learning_rate" should be above 0'):
        teach(ToyBase(UNET), toy_concept("cat"), settings, ConceptSequence.create(tmp_path, ToyBase(UNET).fingerprint))


def predictions(sequence, words):
    """What the model says about each word's own prompt at the end of the line."""
    base = ToyBase(UNET)
    tokens = apply_sequence(base, sequence)
    x_t, t = torch.tensor([[0.5, -1.0]]).view(1, 1, 1, 2), torch.tensor([500])
    with torch.no_grad():
        return [base.predict(x_t, t, base.encode_prompt(f"photo of a <{word}> animal", tokens)) for word in words]


def test_textual_inversion_forgets_nothing(tmp_path):
    sequence, _ = taught(tmp_path, "textual_inversion", ("fox", "cat", "dog"))
    for number, word in enumerate(("fox", "cat", "dog"), start=1):
        (then,), (now,) = predictions(sequence.up_to(number), [word]), predictions(sequence, [word])
        assert torch.equal(then, now)


@each_recipe
@pytest.mark.parametrize("adapter", ["lora", "vera"])
def test_the_next_concept_starts_where_the_last_one_ended(recipe, adapter, tmp_path):
    sequence, _ = taught(tmp_path, recipe, ("fox",), adapter=adapter)
    still = toy_settings(recipe=recipe, adapter=adapter, learning_rate=0.0, token_learning_rate=1e-9)
    after = teach(ToyBase(UNET), toy_concept("cat", seed=1), still, sequence)
    (before,), (now,) = predictions(sequence, ["fox"]), predictions(after, ["fox"])
    torch.testing.assert_close(now, before, rtol=1e-6, atol=1e-6)


def tensors_of(sequence):
    """Every tensor of the newest task's files."""
    files = {**sequence.adapter_files(sequence.tasks[-1]), "methods": sequence.method_state()}
    return {f"{stem}.{key}": value for stem, tensors in files.items() for key, value in tensors.items()}


@each_recipe
def test_settings_take_effect_where_they_are_said_to(recipe, tmp_path):
    changed = {
        "penalty_weight": 7.0,
        "num_prompts": 2,
        "temperature": 0.9,
        "consolidation": 0.6,
        "fisher_draws": 3,
        "fisher_decay": 0.5,
        "fisher_space": "update",
        "adapter": "vera",
        "base_concept": "photo of a tree",
        "rank": 1,
        "alpha": 1.0,
        "learning_rate": 0.02,
        "weight_decay": 0.5,
        "prior_images": 2,
    }
    users, words = settings_by_recipe(), ("fox", "cat", "dog")
    assert {*changed, "low_memory"} == set(users)  # low_memory changes the rounding alone
    plain = tensors_of(taught(tmp_path / "plain", recipe, words)[0])
    for name, value in changed.items():
        other = tensors_of(taught(tmp_path / name, recipe, words, **{name: value})[0])
        same = plain.keys() == other.keys() and all(torch.equal(plain[key], other[key]) for key in plain)
        assert same != (recipe in users[name]), name


def test_a_rank_that_has_no_effect_may_change(tmp_path):
    sequence, _ = taught(tmp_path, "custom_diffusion", ("fox",))
    other = toy_settings(recipe="custom_diffusion", rank=5, alpha=1.0)
    assert len(teach(ToyBase(UNET), toy_concept("cat", seed=1), other, sequence).tasks) == 2


def test_a_task_without_ewc_carries_the_fisher_on(tmp_path):
    unet = ToyUNet().requires_grad_(False)
    sequence = ConceptSequence.create(tmp_path, ToyBase(unet).fingerprint)
    states = []
    for index, (word, recipe) in enumerate((("fox", "lora_ewc"), ("cat", "lora"), ("dog", "lora_ewc"))):
        sequence = teach(ToyBase(unet), toy_concept(word, seed=index), toy_settings(recipe=recipe), sequence)
        states.append(sequence.method_state())
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    penalties = sequence.log(sequence.tasks[-1])["penalty"]
    assert penalties[0] == 0 < max(penalties)  # the anchor is where the cat ended, not the fox
    fishers = [sum(float(v.sum()) for k, v in state.items() if k.startswith("ewc.fisher.")) for state in states]
    assert fishers == pytest.approx([1, 1, 2], rel=1e-4)
