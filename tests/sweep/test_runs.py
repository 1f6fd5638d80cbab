"""Which runs a sweep consists of, and a real one: the same rows in this process as on Ray."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.bases.chosen import ChosenBase
from trainer.bases.tiny.weights import fingerprint, weights_folder
from trainer.cli.demo import SAMPLES
from trainer.concept_set import files_of_concepts, load_concepts
from trainer.errors import ContinualLoraError
from trainer.evaluation.pictures import Drawing
from trainer.settings import TrainSettings
from trainer.sweep.engines import Place
from trainer.sweep.runs import Measuring, Run, concept_inputs, make, runs_of

from .conftest import Processes

VALUES = {"recipe": ["lora"], "adapter": ["lora"], "penalty_weight": [3.0, 10.0], "seed": [0]}
COSTS = ("seconds_per_task", "peak_mb")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two concepts of two images."""
    folder = tmp_path / "two"
    for name in ("guitar", "fox"):
        (folder / name).mkdir(parents=True)
        for style in ("3d", "blob"):
            shutil.copy(SAMPLES / name / f"{style}.png", folder / name)
    (folder / "guitar" / "3d.txt").write_text("a red one")
    (folder / "guitar" / "notes.md").write_text("not read")
    (folder / "samples.json").write_text('{"guitar": "instrument", "fox": "animal"}')
    return folder


def runs(folder: Path, settings: TrainSettings | None = None, **values: list[object]) -> list[Run]:
    inputs = concept_inputs([folder])
    return list(runs_of(inputs, settings or TrainSettings(), VALUES | values, Measuring(), ChosenBase()))


def test_concepts_in_the_order_of_the_listing(two: Path) -> None:
    guitar, fox = load_concepts(two)
    assert (guitar.token, guitar.class_noun) == ("my-guitar", "instrument")
    assert guitar.captions == ["a red one", ""] and len(guitar.images) == 2
    assert fox.prompt == "photo of a <my-fox> animal"
    names = {file.relative_to(two).as_posix() for file in files_of_concepts(two)}
    assert names == {"samples.json", "guitar/3d.png", "guitar/blob.png", "guitar/3d.txt", "fox/3d.png", "fox/blob.png"}


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"fox": 1}'])
def test_a_listing_that_is_none(two: Path, text: str | None) -> None:
    (two / "samples.json").unlink()
    if text is not None:
        (two / "samples.json").write_text(text)
    with pytest.raises(ContinualLoraError, match=r'Write it like \{"fox": "animal"'):
        load_concepts(two)


@pytest.mark.parametrize("name", ["../fox", "", "CON"])
def test_a_listing_that_leads_elsewhere(two: Path, name: str) -> None:
    (two / "samples.json").write_text(json.dumps({name: "animal"}))
    with pytest.raises(ContinualLoraError, match="should be a plain file name"):
        load_concepts(two)


def test_two_folders_of_one_name(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "other" / "two")
    with pytest.raises(ContinualLoraError, match="should have different names"):
        concept_inputs([two, tmp_path / "other" / "two"])


def test_a_strength_multiplies_only_what_has_a_penalty(two: Path) -> None:
    made = runs(two, recipe=["lora", "lora_ewc", "c_lora", "lora_dsc"], seed=[0, 1])
    found = [(run.settings.seed, run.settings.recipe, run.identity["strength"]) for run in made]
    penalized = [(recipe, strength) for recipe in ("lora_ewc", "c_lora") for strength in ("3", "10")]
    of_a_seed = [("lora", ""), *penalized, ("lora_dsc", "")]
    assert found == [(seed, *rest) for seed in (0, 1) for rest in of_a_seed]
    assert [run.settings.penalty_weight for run in made[1:3]] == [3.0, 10.0]
    assert len({run.name for run in made}) == len(made)


def test_a_recipe_with_an_adapter_of_its_own_is_the_same_run_with_another(two: Path) -> None:
    made = runs(two, recipe=["lora", "custom_diffusion"], adapter=["lora", "vera"])
    assert [run.identity["adapter"] for run in made] == ["lora", "vera", "full", "full"]
    assert made[2].identity == made[3].identity and made[0].identity != made[1].identity


def test_identity_knows_all_that_changes_a_result(two: Path) -> None:
    (first,) = runs(two)
    assert first.identity["base"] == fingerprint(weights_folder())[:12] and first.identity["settings"] == "{}"
    (same,) = runs(two, TrainSettings(cache_latents=True, checkpoint_every=3, penalty_weight=77.0))
    assert same.identity == first.identity
    (longer,) = runs(two, TrainSettings(steps=7))
    assert json.loads(longer.identity["settings"]) == {"steps": 7}
    measuring = Measuring(Drawing(count=4), dc_trials=0)
    assert json.loads(measuring.text) == {"count": 4, "dc_trials": 0} and Measuring().text == "{}"
    (two / "guitar" / "3d.txt").write_text("a blue one")
    (other,) = runs(two)
    assert other.identity == {**first.identity, "images": other.identity["images"]} != first.identity
    assert len({run.name for run in (first, longer, other)}) == 3


def test_a_long_name_of_many_bytes_is_still_a_file(two: Path, tmp_path: Path) -> None:
    (first,) = runs(two)
    long = replace(first, identity={**first.identity, "concepts": "ü" * 100})
    (tmp_path / f"{long.name}.norms.csv").touch()


def test_a_machine_with_another_embedded_base_makes_no_run(two: Path, tmp_path: Path) -> None:
    (run,) = runs(two)
    other = replace(run, identity={**run.identity, "base": "0123456789ab"})
    with pytest.raises(ContinualLoraError, match=f"base 0123456789ab`?. Its pack has {run.identity['base']}"):
        make(Measuring(), ChosenBase(), 1, other, Place(concept_inputs([two]), tmp_path))
    assert not (tmp_path / run.name).exists()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return sorted(found, key=lambda row: row["recipe"])


def test_ray_makes_the_rows_of_this_process(processes: Processes, two: Path, tmp_path: Path) -> None:
    command = ["-m", "trainer", "sweep", two, "--recipes", "lora_ewc", "lora", "--strengths", "30"]
    command += ["--steps", "3", "--rank", "2", "--fisher-draws", "2", "--learning-rate", "0.01"]
    command += ["--count", "2", "--drawing-steps", "2", "--dc-trials", "1"]
    # The first machine takes no run, so that all go to where the images are not.
    cluster = ["ray", "--address", processes.cluster(0, 2), "--cache", tmp_path / "cache"]
    engines = {"here": ["here"], "ray": cluster}
    said = {n: processes.run(*command, "--out", tmp_path / n, "--engine", *own) for n, own in engines.items()}
    here, ray = (rows(tmp_path / name) for name in engines)
    assert [(row["recipe"], row["strength"]) for row in here] == [("lora", ""), ("lora_ewc", "30")]
    for own, other in zip(here, ray, strict=True):
        assert {name: value for name, value in own.items() if name not in COSTS} == {
            name: value for name, value in other.items() if name not in COSTS
        }
        assert all(float(row[name]) > 0 for row in (own, other) for name in COSTS)
    files = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("here", "ray")]
    assert files[0] == files[1] and len(files[0]) == 2 + 2 * 3  # table and lock; pictures, norms and costs of each run
    for name in files[0]:
        if name.endswith((".png", ".norms.csv")):
            assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "ray" / name).read_bytes()
    assert len(list((tmp_path / "cache").glob("?" * 64))) == 1 and not list((tmp_path / "cache" / "work").glob("*/*"))
    assert all("| two | lora_ewc | lora | 30 |" in text for text in said.values())
