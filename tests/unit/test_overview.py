"""What a page shows of a sequence: facts about its tasks, and no name that leads out of its folder."""

import io
import json
import os
import shutil

import pytest
from PIL import Image

from tests.toy import ToyBase, ToyUNet, toy_concept, toy_settings
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.overview import (
    choice_of,
    find_line,
    find_root,
    listed_images,
    picture_path,
    task_facts,
    thumbnail,
    whole_number,
)
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
HOSTILE = [
    "",
    " ",
    ".",
    "..",
    "../pets",
    "pets/..",
    "pets\\..",
    "/etc",
    "C:\\pets",
    "pets\x00",
    "pets\x00.png",
    "\ud800",
    "\N{FOX FACE}",
    "a" * 300,
    "nul",
    "a / ../../b",
    "pets / ../../b",
    "pets / /etc/passwd",
]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    root = tmp_path_factory.mktemp("output") / "pets"
    base = ConceptSequence.create(root, ToyBase(UNET).fingerprint)
    fox = teach(ToyBase(UNET), toy_concept("fox"), toy_settings(recipe="lora_ewc", penalty_weight=7.0), base)
    cat = teach(ToyBase(UNET), toy_concept("cat", seed=1), toy_settings(recipe="lora"), fox)
    teach(
        ToyBase(UNET), toy_concept("owl", seed=2), toy_settings(recipe="c_lora"), fox.up_to(0)
    )  # another line, newest
    return root, cat


@pytest.fixture
def folder(taught, tmp_path):
    shutil.copytree(taught[0], tmp_path / "output" / "pets")
    return tmp_path / "output"


def test_a_name_is_the_newest_line_and_a_task_names_another(folder, taught):
    assert [task.token for task in find_line(folder, "pets").tasks] == ["owl"]
    choice = choice_of(taught[1])
    assert choice == f"pets / {taught[1].tasks[1].folder}"
    assert find_line(folder, choice).head == taught[1].head
    first = find_line(folder, f"pets / {taught[1].tasks[0].folder}")  # no end of a line, as when more was taught since
    assert [task.token for task in first.tasks] == ["fox"]


@pytest.mark.parametrize("choice", HOSTILE, ids=ascii)
def test_hostile_names_are_refused(folder, choice):
    (folder.parent / "b").mkdir()
    with pytest.raises(ContinualLoraError, match=r"should"):
        find_line(folder, choice)


def test_links_that_lead_out_are_refused(folder, tmp_path):
    shutil.move(folder / "pets", tmp_path / "elsewhere")
    (folder / "pets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ContinualLoraError, match="leads out"):
        find_line(folder, "pets")
    (folder / "own").mkdir()
    (folder / "own" / "manifest.json").symlink_to(tmp_path / "elsewhere" / "manifest.json")
    with pytest.raises(ContinualLoraError, match="leads out"):
        find_line(folder, "own")


def test_the_folder_of_all_may_be_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert find_line(tmp_path / "link", "pets").tasks[0].token == "owl"
    assert find_root(tmp_path / "link", "pets") == folder / "pets"


def test_facts_of_a_line(folder, taught):
    line = find_line(folder, choice_of(taught[1]))
    fox, cat = line.tasks
    os.utime(line.folder(fox) / "log.json", (1_700_000_000, 1_700_000_000))
    os.utime(line.folder(fox), (1, 1))
    (line.folder(cat) / "lora.safetensors").unlink()
    found = task_facts(line, line.tasks)
    sizes = [sum(file.stat().st_size for file in line.folder(task).rglob("*") if file.is_file()) for task in (fox, cat)]
    assert [facts.num_bytes for facts in found] == sizes and min(sizes) > 1000
    assert [(facts.index, facts.token, facts.class_noun, facts.recipe) for facts in found] == [
        (1, "fox", "animal", "lora_ewc"),
        (2, "cat", "animal", "lora"),
    ]
    assert [facts.penalty_weight for facts in found] == [7.0, None]  # `lora` has the setting, and no use for it
    assert found[0].written == 1_700_000_000  # when the training ended, not when its folder was touched
    assert found[0].num_images == 3
    assert found[0].images == [f"tasks/{fox.folder}/images/00{number}.png" for number in (1, 2, 3)]
    assert [facts.is_complete for facts in found] == [True, False]
    assert [facts.is_branch for facts in found] == [True, True]  # the owl's line is the newest
    newest = find_line(folder, "pets")
    assert [facts.is_branch for facts in task_facts(newest, newest.tasks)] == [False]
    assert task_facts(newest, newest.tasks)[0].penalty_weight == 10.0
    assert task_facts(line, line.tasks[1:])[0].token == "cat"


def test_a_task_that_was_moved_away_has_no_date_and_no_picture(folder, taught):
    line = find_line(folder, choice_of(taught[1]))
    shutil.rmtree(line.folder(line.tasks[0]))
    facts = task_facts(line, line.tasks)[0]
    assert (facts.written, facts.num_bytes, facts.images, facts.is_complete) == (None, 0, [], False)


def test_a_damaged_manifest_is_said_in_three_facts(folder):
    (folder / "pets" / "manifest.json").write_text('{"format_version": 1, "tasks": ')
    with pytest.raises(ContinualLoraError, match=r"list of the sequence's tasks.*cannot be read.*manifest\.copy\.json"):
        find_line(folder, "pets")


def test_pictures_of_a_sequence_are_found(folder):
    root, (task,) = folder / "pets", find_line(folder, "pets").tasks
    name = f"tasks/{task.folder}/images/001.png"
    assert picture_path(root, name) == root / name
    drawn = root / "evaluation" / task.folder / "cell-1"
    drawn.mkdir(parents=True)
    shutil.copy(root / name, drawn / "001.png")
    assert picture_path(root, f"evaluation/{task.folder}/cell-1/001.png") == drawn / "001.png"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "manifest.json",
        "/etc/passwd",
        "tasks/{task}/log.json",
        "tasks/{task}/images/002.txt",
        "tasks/{task}/images/009.png",
        "tasks/{task}/embeddings/001.png",
        "tasks/../images/001.png",
        "tasks/{task}/images/../../../secret.png",
        "evaluation/../tasks/{task}/images/001.png",
        "tasks\\{task}\\images\\001.png",
        "tasks/{task}/images/001.png\x00",
        "tasks/{task}/images/\x00.png",
        "tasks//images/001.png",
        "tasks/{task}/images/link.png",
        "tasks/{task}/images/\N{FOX FACE}.png",
        "tasks/{task}/images/" + "a" * 300 + ".png",
        "tasks/linked/images/001.png",
    ],
    ids=ascii,
)
def test_other_names_are_no_pictures(folder, tmp_path, name):
    root, (task,) = folder / "pets", find_line(folder, "pets").tasks
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (root / "tasks" / task.folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "tasks" / task.folder / "images" / "002.txt").write_text("no picture")
    (tmp_path / "away" / "images").mkdir(parents=True)
    shutil.copy(tmp_path / "secret.png", tmp_path / "away" / "images" / "001.png")
    (root / "tasks" / "linked").symlink_to(tmp_path / "away")
    with pytest.raises(ContinualLoraError, match="should"):
        picture_path(root, name.format(task=task.folder))


def test_a_folder_outside_lists_nothing(folder, tmp_path):
    (tmp_path / "away").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "away" / "001.png")
    (folder / "pets" / "away").symlink_to(tmp_path / "away")
    assert listed_images(folder / "pets", "away") == []
    assert listed_images(folder / "pets", "../../away") == []


def test_a_thumbnail_fits_and_is_never_enlarged(tmp_path):
    Image.new("RGB", (300, 200), (200, 30, 60)).save(tmp_path / "wide.png")
    with Image.open(io.BytesIO(thumbnail(tmp_path / "wide.png", 90))) as small:
        assert small.format == "WEBP" and small.size == (90, 60)
        assert all(abs(a - b) <= 6 for a, b in zip(small.convert("RGB").getpixel((45, 30)), (200, 30, 60), strict=True))
    with Image.open(io.BytesIO(thumbnail(tmp_path / "wide.png", 512))) as same:
        assert same.size == (300, 200)


def test_what_is_no_picture_is_not_sent(tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(ContinualLoraError, match=r'"page\.png" must be a readable image'):
        thumbnail(tmp_path / "page.png", 90)


@pytest.mark.parametrize("text", ["0", "101", "-1", "1.5", "x", "", "1e2", "\u0661", "9" * 5000])
def test_numbers_out_of_range_are_refused(text):
    with pytest.raises(ContinualLoraError, match='"count" should be a whole number from 1 to 100'):
        whole_number({"count": text}, "count", 50, 1, 100)


def test_numbers_in_range_are_taken():
    assert [whole_number(query, "count", 50, 1, 100) for query in ({}, {"count": "1"}, {"count": "100"})] == [
        50,
        1,
        100,
    ]


def test_a_manifest_of_another_version_is_refused(folder):
    path = folder / "pets" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(ContinualLoraError, match="Update Continual LoRA"):
        find_line(folder, "pets")
