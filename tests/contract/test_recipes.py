"""What every recipe must do: teach concept after concept, resume, carry a state that does not grow."""

import math

import pytest
import torch
from safetensors.torch import load_file

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.bases.tiny.base import TinyBase
from trainer.errors import ContinualLoraError
from trainer.recipes import RECIPES, build_methods
from trainer.sequence import ConceptSequence
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
        assert len(train) == task.settings["steps"] and task.values["adapter_norm"] > 0
    first, second = (sequence.log(task)["penalty"] for task in sequence.tasks)
    assert first == [0.0] * len(first) and second[0] == 0.0  # no past, and then at the anchor
    holds = any("ewc" in name for name in RECIPES[recipe].methods)
    assert all(value > 0 for value in second[1:]) if holds else second == first
    one, two = (sequence.lora(task) for task in sequence.tasks)
    assert any(not torch.equal(value, two[name]) for name, value in one.items())


@each_recipe
def test_state_does_not_grow_with_the_concepts(recipe, tmp_path):
    sequence, _ = taught(tmp_path, recipe, ("fox", "cat", "dog", "owl"))
    folders = [sequence.folder(task) for task in sequence.tasks]
    for name in ("lora.safetensors", "methods.safetensors"):
        assert {(folder / name).exists() for folder in folders} == {name[0] == "l" or bool(RECIPES[recipe].methods)}
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


def test_a_task_without_ewc_carries_the_fisher_on(tmp_path):
    unet = ToyUNet().requires_grad_(False)
    sequence = ConceptSequence.create(tmp_path, ToyBase(unet).fingerprint)
    states = []
    for index, (word, recipe) in enumerate((("fox", "lora_ewc"), ("cat", "lora"), ("dog", "lora_ewc"))):
        sequence = teach(ToyBase(unet), toy_concept(word, seed=index), toy_settings(recipe=recipe), sequence)
        states.append(sequence.method_state())
    assert states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert max(sequence.log(sequence.tasks[-1])["penalty"]) > 0
    fishers = [sum(float(v.sum()) for k, v in state.items() if k.startswith("ewc.fisher.")) for state in states]
    assert fishers == pytest.approx([1, 1, 2], rel=1e-4)
