"""What disks and hands do to a sequence's files: it is named, and nothing is written elsewhere or thrown away."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.apply import apply_sequence
from trainer.disk.files import set_aside
from trainer.disk.sequence import ConceptSequence, lines_on_disk
from trainer.errors import ContinualLoraError
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
BASE = ToyBase(UNET).fingerprint


def add(sequence, word, **changes):
    settings = toy_settings(steps=2, fisher_draws=2, checkpoint_every=1, **changes)
    return teach(ToyBase(UNET), toy_concept(word, seed=len(word)), settings, sequence)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    return add(add(ConceptSequence(tmp_path_factory.mktemp("taught") / "pets", BASE), "fox"), "wildcat")


@pytest.fixture
def pets(taught, tmp_path):
    """A copy: fox, then wildcat."""
    shutil.copytree(taught.root, tmp_path / "pets")
    return ConceptSequence.open(tmp_path / "pets")


def refuses(call, *facts):
    """The error names every fact, in this order."""
    with pytest.raises(ContinualLoraError) as caught:
        call()
    positions = [str(caught.value).find(str(fact)) for fact in facts]
    assert -1 not in positions and positions == sorted(positions), str(caught.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 16  # among the numbers: safetensors itself does not notice
    path.write_bytes(content)


def remove(path):
    path.unlink()


DAMAGES = {
    "cut": (cut, "Its bytes are others"),
    "flipped": (flip, "Its bytes are others"),
    "missing": (remove, "missing"),
}
READERS = {
    "lora.safetensors": [
        lambda line: line.lora(line.tasks[-1]),
        lambda line: line.lora_metadata(line.tasks[-1]),
        lambda line: apply_sequence(ToyBase(UNET), line),
        lambda line: add(line, "dog"),
    ],
    "methods.safetensors": [lambda line: line.method_state(), lambda line: add(line, "dog")],
    "embeddings/wildcat.safetensors": [lambda line: line.tokens(), lambda line: add(line, "dog")],
    "log.json": [lambda line: line.log(line.tasks[-1])],
}


@pytest.mark.parametrize(("damage", "came"), DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_named_by_everyone_who_reads_it(pets, name, damage, came):
    path = pets.folder(pets.tasks[-1]) / name
    damage(path)
    before = files_below(pets.root / "tasks")
    for read in READERS[name]:
        refuses(
            lambda read=read: read(pets),
            'Concept 2 of "pets"',
            f"`{name}`",
            came,
            "Put the file back",
            path.parents[name.count("/")],
        )
    assert files_below(pets.root / "tasks") == before
    assert pets.up_to(1).tokens() and pets.up_to(1).lora(pets.tasks[0])  # what came before is untouched


def test_the_advice_for_a_damaged_file_works(pets, taught, tmp_path):
    folder = pets.folder(pets.tasks[-1])
    flip(folder / "lora.safetensors")
    folder.rename(tmp_path / "away")
    add(pets.up_to(1), "wildcat")
    assert files_below(pets.root) == files_below(taught.root)


def test_a_task_that_lacks_a_file_is_made_again_and_what_is_left_of_it_kept(pets, taught):
    folder = pets.folder(pets.tasks[-1])
    (folder / "methods.safetensors").unlink()
    left = files_below(folder)
    add(pets.up_to(1), "wildcat")
    assert files_below(pets.folder(pets.tasks[-1])) == files_below(taught.folder(taught.tasks[-1]))
    assert files_below(folder.with_name(folder.name + ".damaged")) == left


def as_older_version(pets):
    """Without digests in the manifest."""
    path = pets.root / "manifest.json"
    manifest = json.loads(path.read_text())
    for task in manifest["tasks"].values():
        del task["files"]
    path.write_text(json.dumps(manifest))


def test_a_sequence_without_digests_opens_and_is_gone_on_from(pets, taught):
    as_older_version(pets)
    older = ConceptSequence.open(pets.root)
    assert older.tokens().keys() == {"fox", "wildcat"} and add(older.up_to(1), "wildcat") == older
    assert add(older, "dog").tasks[-1].files and not ConceptSequence.open(pets.root).tasks[0].files
    flip(pets.folder(pets.tasks[-1]) / "log.json")  # no JSON any more
    refuses(lambda: older.log(older.tasks[-1]), "log.json", "It cannot be read", "Put the file back")


@pytest.mark.parametrize(
    "place", [b"__meta", b"lora_up", b"lora_down", b'alpha"', b"F32", b"shape", b"},", b"data_off"]
)
def test_a_flipped_header_without_digests_is_an_error_too(pets, place):
    as_older_version(pets)
    path = pets.folder(pets.tasks[-1]) / "lora.safetensors"
    content = bytearray(path.read_bytes())
    content[content.rindex(place)] ^= 2
    path.write_bytes(content)
    with pytest.raises(ContinualLoraError):
        apply_sequence(ToyBase(UNET), pets)


def edit(change):
    """A way to edit the newest task of a manifest by hand."""

    def edited(manifest):
        task = manifest["tasks"][manifest["head"]]
        change(manifest, task)
        return manifest

    return edited


def put(name, value):
    return edit(lambda manifest, task: task.update({name: value}))


def point_first_to_second(manifest, task):
    manifest["tasks"][task["parent"]]["parent"] = manifest["head"]


EDITS = {
    "a list": (lambda manifest: [1], "something else"),
    "a number": (lambda manifest: 3, "something else"),
    "no format": (edit(lambda manifest, task: manifest.pop("format_version")), "`format_version` is `None`"),
    "format as text": (edit(lambda manifest, task: manifest.update(format_version="1")), "`format_version` is `1`"),
    "no base": (edit(lambda manifest, task: manifest.pop("base")), "the texts `base` and `head`"),
    "no tasks": (edit(lambda manifest, task: manifest.pop("tasks")), "the table `tasks`"),
    "other head": (edit(lambda manifest, task: manifest.update(head="abc")), "`head` is `abc`"),
    "no head": (edit(lambda manifest, task: manifest.pop("head")), "`base` and `head`"),
    "task is a list": (lambda m: {**m, "tasks": {**m["tasks"], m["head"]: []}}, "there is no table"),
    "circle": (edit(point_first_to_second), "right after its `parent`"),
    "own parent": (edit(lambda manifest, task: task.update(parent=manifest["head"])), "right after its `parent`"),
    "parent is gone": (edit(lambda manifest, task: manifest["tasks"].pop(task["parent"])), "that is no task"),
    "no parent, second": (put("parent", ""), "right after its `parent`"),
    "parent is a number": (put("parent", 1), "`parent` is `1`"),
    "folder outside": (put("folder", "../../x"), "`folder` is `../../x`"),
    "folder absolute": (put("folder", "/etc"), "`folder` is `/etc`"),
    "folder of Windows": (put("folder", "..\\x"), "`folder` is `..\\x`"),
    "folder up": (put("folder", ".."), "`folder` is `..`"),
    "no folder": (edit(lambda manifest, task: task.pop("folder")), "`folder` is missing"),
    "one folder twice": (
        edit(lambda manifest, task: task.update(folder=manifest["tasks"][task["parent"]]["folder"])),
        "Two of its tasks have one `folder`",
    ),
    "token outside": (put("token", "../x"), "`token` is `../x`"),
    "token a list": (put("token", ["fox"]), "`token` is"),
    "file outside": (put("files", {"../../x": "0"}), "`files` is"),
    "index as text": (put("index", "2"), "`index` is `2`"),
    "index true": (put("index", True), "`index` is `True`"),
    "settings a list": (put("settings", []), "`settings` is"),
    "rank as text": (put("settings", {"rank": "2", "alpha": 0.0, "seed": 0, "base_concept": ""}), "`settings` is"),
    "rank huge": (put("settings", {"rank": 1 << 40, "alpha": 0.0, "seed": 0, "base_concept": ""}), "`settings` is"),
    "no alpha": (put("settings", {"rank": 2, "seed": 0, "base_concept": ""}), "`settings` is"),
    "value as text": (put("values", {"loss": "low"}), "`values` is"),
    "key of another": (put("key", "abc"), "`key` is `abc`"),
    "digests a text": (put("image_digests", "abc"), "`image_digests` is `abc`"),
    "half a character": (put("concept", "\ud83d"), r"`concept` is `\ud83d`"),
}


@pytest.mark.parametrize(("change", "came"), EDITS.values(), ids=EDITS.keys())
def test_a_manifest_edited_by_hand_is_refused_by_every_way_in(pets, change, came):
    path = pets.root / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    before = files_below(pets.root.parent)
    ways_in = [
        lambda: ConceptSequence.open(pets.root),
        lambda: ConceptSequence.create(pets.root, BASE),
        lambda: lines_on_disk(pets.root),
        lambda: pets.tasks,
        lambda: pets.find(pets.head),
        lambda: add(pets, "dog"),
        lambda: add(ConceptSequence(pets.root, BASE), "dog"),
    ]
    for way_in in ways_in:
        refuses(way_in, path, came, "put the copy", "manifest.copy.json")
    assert files_below(pets.root.parent) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1', b"9" * 5000])
def test_a_manifest_that_is_no_json_is_mended_by_its_copy(pets, content):
    path = pets.root / "manifest.json"
    path.write_bytes(content)
    refuses(lambda: ConceptSequence.open(pets.root), path, "It cannot be read", "put the copy", "manifest.copy.json")
    (pets.root / "manifest.copy.json").replace(path)
    assert ConceptSequence.open(pets.root) == pets and pets.tokens()


def test_keys_of_a_later_version_are_no_damage_and_stay(pets):
    path = pets.root / "manifest.json"
    manifest = json.loads(path.read_text())
    for task in manifest["tasks"].values():
        task["mood"] = "good"
    path.write_text(json.dumps(manifest | {"weather": "fair"}))
    after = json.loads((add(ConceptSequence.open(pets.root), "dog").root / "manifest.json").read_text())
    assert after["weather"] == "fair" and [task.get("mood") for task in after["tasks"].values()] == [
        "good",
        "good",
        None,
    ]


def test_a_line_whose_manifest_changed_meanwhile(pets):
    manifest = json.loads((pets.root / "manifest.json").read_text())
    head = manifest["tasks"][pets.head]["parent"]
    manifest |= {"head": head, "tasks": {head: manifest["tasks"][head]}}
    (pets.root / "manifest.json").write_text(json.dumps(manifest))
    refuses(lambda: pets.tasks, "should still hold the task", "was changed since", "Open the sequence again")


class Stop(BaseException):
    pass


def interrupted(sequence):
    """A training of the dog that was stopped after its first step; where its state is."""

    def stop(record):
        raise Stop

    with pytest.raises(Stop):
        teach(ToyBase(UNET), toy_concept("dog", seed=3), toy_settings(steps=2, fisher_draws=2), sequence, stop)
    (path,) = (sequence.root / "partial").iterdir()
    return path


def rename_parameter(path):
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("parameter."))
    tensors[name + "x"] = tensors.pop(name)
    save_file(tensors, path)


def lengthen(path):
    tensors = load_file(path)
    save_file({**tensors, "losses": torch.ones(5)}, path)


@pytest.mark.parametrize("damage", [cut, flip, rename_parameter, lengthen], ids=lambda damage: damage.__name__)
def test_a_damaged_state_is_kept_aside_and_the_training_begins_again(pets, damage):
    def dog(sequence):
        return teach(ToyBase(UNET), toy_concept("dog", seed=3), toy_settings(steps=2, fisher_draws=2), sequence)

    path = interrupted(pets)
    damage(path)
    damaged = path.read_bytes()
    with pytest.warns(
        UserWarning, match=r"It begins again; the damaged file is now `.*\.damaged`, which you may delete"
    ):
        finished = dog(pets)
    assert path.with_name(path.name + ".damaged").read_bytes() == damaged and not path.exists()
    undisturbed = pets.root.parent / "undisturbed"
    shutil.copytree(pets.root / "tasks", undisturbed / "tasks")
    shutil.rmtree(undisturbed / "tasks" / finished.tasks[-1].folder)
    manifest = json.loads((pets.root / "manifest.json").read_text())
    del manifest["tasks"][finished.head]
    (undisturbed / "manifest.json").write_text(json.dumps(manifest | {"head": pets.head}))
    assert files_below(dog(ConceptSequence.open(undisturbed)).root / "tasks") == files_below(pets.root / "tasks")


def test_a_state_of_a_version_without_digests_is_gone_on_from(pets):
    path, steps = interrupted(pets), []
    save_file(load_file(path), path)
    teach(
        ToyBase(UNET),
        toy_concept("dog", seed=3),
        toy_settings(steps=2, fisher_draws=2),
        pets,
        lambda record: steps.append((record.phase, record.step)),
    )
    assert steps[0] == ("train", 2)


def test_setting_aside_overwrites_nothing(tmp_path):
    kept = []
    for number in range(3):
        (tmp_path / "file").write_text(str(number))
        kept.append(set_aside(tmp_path / "file"))
    assert [path.name for path in kept] == ["file.damaged", "file.damaged-2", "file.damaged-3"]
    assert [path.read_text() for path in kept] == ["0", "1", "2"]
