"""An evaluation as data: the numbers of its table.csv, and the pictures that they were computed from."""

import csv
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, toy_concept, toy_settings
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.pictures import Artist
from trainer.evaluation.record import METRICS, newest_record, read_record, record_rows
from trainer.evaluation.report import write_evaluation
from trainer.overview import picture_path
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
WORDS = ("fox", "small-cat", "owl")


class MeanColors:
    name = "mean colors"

    def __call__(self, images):
        halves = torch.cat([images[..., :4].mean((2, 3)), images[..., 4:].mean((2, 3))], dim=1)
        return torch.nn.functional.normalize(halves - 0.5, dim=1)


def draw(line, prompts):
    for prompt in prompts:
        yield torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(10 * len(line.tasks) + len(prompt)))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    line = ConceptSequence.create(tmp_path_factory.mktemp("evaluation") / "pets", ToyBase(UNET).fingerprint)
    for seed, word in enumerate(WORDS):
        line = teach(ToyBase(UNET), toy_concept(word, seed=seed), toy_settings(), line)
    artist = Artist(draw, {"seed": 1})
    return line, write_evaluation(evaluate(line, artist, MeanColors(), lambda: ToyBase(UNET), 2, 0)).name


@pytest.fixture
def line(evaluated, tmp_path):
    shutil.copytree(evaluated[0].root, tmp_path / "pets")
    return replace(evaluated[0], root=tmp_path / "pets")


@pytest.fixture
def file(line, evaluated):
    return line.root / "evaluation" / "reports" / evaluated[1] / "evaluation.json"


def test_the_numbers_are_those_of_the_table(line, evaluated, file):
    record = read_record(line, evaluated[1])
    rows = record_rows(record, 1, 50)
    assert record.encoder == "mean colors" and record.line.head == line.head
    assert [row["token"] for row in rows] == list(WORDS)
    with (file.parent / "table.csv").open(encoding="utf-8", newline="") as table:
        listed = list(csv.DictReader(table))
    cells = [(row, cell) for row in rows for cell in row["cells"]]
    assert len(cells) == len(listed) == 6
    for (row, cell), expected in zip(cells, listed, strict=True):
        assert (row["after_task"], cell["concept_index"]) == (
            int(expected["after_task"]),
            int(expected["concept_index"]),
        )
        assert {name: str(value) for name, value in cell["scores"].items()} == {
            name: expected[name] for name in METRICS if expected[name]
        }
        assert set(cell["scores"]) == {"mmd", "mmd_squared", "kid", "i2i", "dc_accuracy"}


def test_the_pictures_behind_a_cell_are_those_that_were_measured(line, evaluated):
    rows = record_rows(read_record(line, evaluated[1]), 1, 50)
    for row in rows:
        assert len(row["real_images"]) == 3
        for cell in row["cells"]:
            assert cell["num_images"] == 10 and len(cell["images"]) == 8
            for name in [*row["real_images"], *cell["images"]]:
                assert picture_path(line.root, name).is_file()
    after, concept = line.tasks[2], line.tasks[0]
    assert rows[2]["cells"][0]["images"][0].startswith(f"evaluation/{after.folder}/{concept.folder}-")
    assert rows[2]["cells"][0]["images"][0].endswith("/001.png")


def test_rows_come_in_pages(line, evaluated):
    record = read_record(line, evaluated[1])
    assert [row["after_task"] for row in record_rows(record, 2, 1)] == [2]
    assert len(record_rows(record, 2, 1)[0]["cells"]) == 2
    assert record_rows(record, 4, 50) == []


def test_the_newest_evaluation_of_the_line_is_found(line, evaluated, file):
    assert newest_record(line).name == evaluated[1]
    again = write_evaluation(
        evaluate(line.up_to(2), Artist(draw, {"seed": 2}), MeanColors(), lambda: ToyBase(UNET), 0, 0)
    )
    os.utime(file, (1, 1))
    assert newest_record(line).name == again.name
    assert [task.token for task in newest_record(line).line.tasks] == ["fox", "small-cat"]
    os.utime(again / "evaluation.json", (0, 0))
    assert newest_record(line).name == evaluated[1]
    assert newest_record(line.up_to(2)).name == again.name  # the other one is of more than this line
    assert newest_record(line.up_to(1)) is None


def test_pictures_that_were_removed_are_not_listed(line, evaluated):
    shutil.rmtree(line.root / "evaluation" / line.tasks[1].folder)
    rows = record_rows(read_record(line, evaluated[1]), 1, 50)
    assert rows[1]["cells"][0]["images"] == [] and rows[1]["cells"][0]["num_images"] == 0
    assert rows[2]["cells"][0]["num_images"] == 10


def test_a_number_that_is_none_is_left_out(line, evaluated, file):
    stored = json.loads(file.read_text())
    stored["cells"][0]["kid"] = float("nan")
    file.write_text(json.dumps(stored))
    (row, *_) = record_rows(read_record(line, evaluated[1]), 1, 50)
    assert "kid" not in row["cells"][0]["scores"] and "mmd" in row["cells"][0]["scores"]


@pytest.mark.parametrize("name", ["", "..", "../reports", "/etc", "x\x00", "a" * 300, "not there"], ids=ascii)
def test_other_names_are_no_evaluations(line, name):
    with pytest.raises(ContinualLoraError, match="should"):
        read_record(line, name)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: [],
        lambda stored: stored | {"head": 3},
        lambda stored: stored | {"head": "of another sequence"},
        lambda stored: stored | {"encoder": None},
        lambda stored: stored | {"cells": {}},
        lambda stored: stored | {"cells": [3]},
        lambda stored: stored | {"cells": [stored["cells"][0] | {"mmd": "0.5"}]},
        lambda stored: stored | {"cells": [stored["cells"][0] | {"after_task": "1"}]},
        lambda stored: stored | {"cells": [stored["cells"][0] | {"pictures": None}]},
    ],
)
def test_a_damaged_record_is_said_in_three_facts(line, evaluated, file, change):
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ContinualLoraError, match="should"):
        read_record(line, evaluated[1])


def test_a_cut_record_is_said_in_three_facts(line, file):
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ContinualLoraError, match=r"as an evaluation wrote it.*cannot be read.*again, or delete it"):
        newest_record(line)


def test_pictures_elsewhere_are_not_listed(line, evaluated, file):
    stored = json.loads(file.read_text())
    stored["cells"][0]["pictures"] = "../../.."
    file.write_text(json.dumps(stored))
    assert record_rows(read_record(line, evaluated[1]), 1, 1)[0]["cells"][0]["images"] == []
