"""The sequence on disk: round trips, branches, and what it refuses."""

import json

import pytest
import torch

from tests.toy import ENCODER, ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.disk.manifest import FORMAT_VERSION
from trainer.disk.sequence import ConceptSequence, digest, lines_on_disk
from trainer.errors import ContinualLoraError
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
BASE = ToyBase(UNET).fingerprint


def add(sequence, word, base=None, seed=0, **changes):
    return teach(base or ToyBase(UNET), toy_concept(word, seed=seed), toy_settings(**changes), sequence)


@pytest.fixture
def pets(tmp_path):
    """fox, then cat."""
    return add(add(ConceptSequence.create(tmp_path / "pets", BASE), "fox"), "cat")


def test_what_was_taught_is_read_back(pets):
    opened = ConceptSequence.open(pets.root)
    assert opened == pets and opened.base == BASE
    fox, cat = opened.tasks
    assert (fox.index, fox.token, fox.parent, cat.index, cat.token, cat.parent) == (1, "fox", "", 2, "cat", fox.key)
    assert cat.class_noun == "animal" and cat.prompt == "photo of a <cat> animal" and cat.recipe == "lora_ewc_dc"
    assert cat.settings["rank"] == 2 and cat.settings["steps"] == 4 and len(cat.image_digests) == 3
    assert {"loss", "adapter_norm", "temperature", "fisher_trace", "dc_entropy"} <= set(cat.values)
    assert set(opened.tokens()) == {"fox", "cat"} and opened.tokens()["cat"][ENCODER].shape == (3,)
    assert len(opened.log(cat)["loss"]) == len(opened.log(cat)["penalty"]) == 4
    assert cat.values["loss"] == pytest.approx(sum(opened.log(cat)["loss"]) / 4)
    assert opened.lora_metadata(cat)["continual_lora.task"] == cat.key


def test_state_of_the_methods_is_that_of_the_newest_task(pets):
    first, second = pets.up_to(1).method_state(), pets.method_state()
    assert set(first) == set(second) and any(not torch.equal(value, second[name]) for name, value in first.items())
    assert all(key.startswith(("ewc.fisher.", "ewc.anchor.")) for key in second)


def test_no_leftovers(pets):
    assert sorted(path.name for path in pets.root.rglob("*") if path.suffix in (".tmp", ".new")) == []
    assert list((pets.root / "partial").iterdir()) == []


def test_a_line_can_be_cut(pets):
    assert [task.token for task in pets.up_to(1).tasks] == ["fox"] and pets.up_to(2) == pets
    assert pets.up_to(0).head == "" and pets.up_to(0).tasks == [] and pets.up_to(0).tokens() == {}
    for wrong in (-1, 3):
        with pytest.raises(ContinualLoraError, match=f"between 0 and 2.*It is {wrong}.*Set it"):
            pets.up_to(wrong)


def test_an_unchanged_task_is_not_trained_again(pets):
    before, base = files_below(pets.root), ToyBase(UNET)
    fox = add(ConceptSequence.create(pets.root, BASE), "fox", base)
    again = add(fox, "cat", base, low_memory=False, checkpoint_every=1)  # these do not change what comes out
    assert again == pets and base.passes == 0 and files_below(pets.root) == before


def test_another_sampling_on_the_model_makes_another_task(pets):
    base = ToyBase(UNET)
    base.changes = {"sampling": "v_prediction"}
    again = add(ConceptSequence.create(pets.root, BASE), "fox", base)
    assert base.passes and again.tasks[0].key != pets.tasks[0].key
    assert add(ConceptSequence.create(pets.root, BASE), "fox", base) == again


def test_a_sequence_from_before_a_setting_was_there_is_gone_on_from(pets, tmp_path):
    add(pets, "dog")
    reference, fresh = files_below(pets.root / "tasks"), ConceptSequence(tmp_path / "old", BASE)
    add(add(fresh, "fox"), "cat")
    manifest = json.loads((fresh.root / "manifest.json").read_text())
    for task in manifest["tasks"].values():
        del task["settings"]["rescale"], task["settings"]["prior_images"]
    (fresh.root / "manifest.json").write_text(json.dumps(manifest))
    older = ConceptSequence.open(fresh.root)
    assert older.tasks[1].rank == 2 and len(older.lora(older.tasks[1])) and set(older.tokens()) == {"fox", "cat"}
    add(older, "dog")
    assert files_below(fresh.root / "tasks") == reference


@pytest.mark.parametrize("changed", [{"seed": 7}, {"steps": 5}, {"learning_rate": 0.01}])
def test_a_changed_earlier_task_makes_a_branch_and_keeps_the_old_line(pets, changed):
    before = files_below(pets.root / "tasks")
    settings = {key: value for key, value in changed.items() if key != "seed"}
    branch = add(ConceptSequence.create(pets.root, BASE), "fox", seed=changed.get("seed", 0), **settings)
    branch = add(branch, "cat")
    after = files_below(pets.root / "tasks")
    assert {name: after[name] for name in before} == before and len(after) == 2 * len(before)
    assert ConceptSequence.open(pets.root) == branch and ConceptSequence.open(pets.root, pets.head) == pets
    assert [task.token for task in pets.tasks] == [task.token for task in branch.tasks] == ["fox", "cat"]
    assert not {task.key for task in pets.tasks} & {task.key for task in branch.tasks}
    lines = [*lines_on_disk(pets.root).values()]
    assert lines[0] == branch and {line.head for line in lines[1:]} == {
        key for line in (pets, branch) for key in (task.key for task in line.tasks) if key != branch.head
    }


def test_two_branches_share_their_common_task(pets):
    dog = add(pets.up_to(1), "dog")
    assert dog.tasks[0] == pets.tasks[0] and len(list((pets.root / "tasks").iterdir())) == 3
    assert [line.head for line in lines_on_disk(pets.root).values()] == [dog.head, pets.tasks[0].key, pets.head]
    assert set(dog.tokens()) == {"fox", "dog"} and set(pets.tokens()) == {"fox", "cat"}


def three_facts(caught, *facts):
    positions = [str(caught.value).find(fact) for fact in facts]
    assert -1 not in positions and positions == sorted(positions), str(caught.value)


def test_a_newer_format_is_refused_by_every_way_in(pets):
    path = pets.root / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert manifest["format_version"] == FORMAT_VERSION == 1
    path.write_text(json.dumps(manifest | {"format_version": 2}), encoding="utf-8")
    before = files_below(pets.root)
    ways_in = (
        lambda: ConceptSequence.open(pets.root),
        lambda: ConceptSequence.create(pets.root, BASE),
        lambda: lines_on_disk(pets.root),
        lambda: add(pets, "dog"),
    )
    for way_in in ways_in:
        with pytest.raises(ContinualLoraError) as caught:
            way_in()
        three_facts(caught, '"pets" should have format 1 or older', "It has format 2", "Update Continual LoRA")
    assert files_below(pets.root) == before


def test_another_base_is_refused(pets):
    for use in (lambda: ConceptSequence.create(pets.root, "f" * 64), lambda: pets.check_base("f" * 64)):
        with pytest.raises(ContinualLoraError) as caught:
            use()
        three_facts(caught, '"pets" should be used with the base model', BASE[:12], "`ffffffffffff`", "Load the model")
    pets.check_base(BASE)


def test_no_sequence_and_no_such_task(pets, tmp_path):
    with pytest.raises(ContinualLoraError) as caught:
        ConceptSequence.open(tmp_path / "nothing")
    three_facts(caught, "should be the folder of a concept sequence", "It holds no manifest.json", "Choose another")
    with pytest.raises(ContinualLoraError) as caught:
        ConceptSequence.open(pets.root, "deadbeef")
    three_facts(caught, "should hold a task `deadbeef`", pets.tasks[0].key, "Choose one of its tasks")


def test_an_empty_line_writes_nothing(tmp_path):
    sequence = ConceptSequence.create(tmp_path / "new", BASE)
    assert sequence.tasks == [] and sequence.tokens() == {} and sequence.find("a") is None
    assert not (tmp_path / "new").exists()


def test_digest_is_of_the_value_not_of_the_order_of_its_keys():
    assert digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1}) != digest({"a": 1, "b": [2]})
