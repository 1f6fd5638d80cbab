"""What every file of methods/ must keep to."""

import importlib
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

import trainer
from tests.toy import ToyBase, toy_concept, toy_settings, trained_task
from trainer.methods import METHODS
from trainer.methods.method import Method
from trainer.recipes import RECIPES
from trainer.task import StepRecord

# Every method with the arguments of every recipe that uses it.
CASES = [(name, dict(args)) for recipe in RECIPES.values() for name, args in recipe.methods.items()]
CASES += [(name, {}) for name in METHODS if name not in dict(CASES)]
each_method = pytest.mark.parametrize(("name", "args"), CASES, ids=[f"{name}-{args}" for name, args in CASES])


def run_task(method, task):
    """All hooks in their order; the records of both phases."""
    method.begin_task(task.adapter)
    return [record for phase in (method.consolidate, method.end_task) for record in phase(task)]


def finished(name, args, seeds=(1,), **settings):
    method = METHODS[name](toy_settings(**settings), **args)
    for seed in seeds:
        task = trained_task(ToyBase(), seed=seed)
        run_task(method, task)
    return method, task


def sizes(method):
    return {key: (value.shape, value.dtype) for key, value in method.state_dict().items()}


def test_the_folder_is_the_registry():
    modules = {path.stem for path in (Path(trainer.__file__).parent / "methods").glob("*.py")}
    assert {method.__module__.rpartition(".")[2] for method in METHODS.values()} == modules - {"__init__", "method"}
    assert all(issubclass(method, Method) and name.isidentifier() for name, method in METHODS.items())


def test_recipes_name_only_methods_that_exist():
    assert {name for recipe in RECIPES.values() for name in recipe.methods} <= set(METHODS)


@each_method
def test_nothing_is_added_at_the_first_task(name, args):
    method, task = METHODS[name](toy_settings(), **args), trained_task(ToyBase())
    assert method.state_dict() == {}
    method.begin_task(task.adapter)
    assert method.penalty(task.adapter) is None


@each_method
def test_penalty_is_a_scalar_with_a_graph_into_theta(name, args):
    method, task = finished(name, args, penalty_weight=2.0)
    method.begin_task(task.adapter)
    for parameter in task.adapter.parameters.values():
        parameter.data += 0.1
    penalty = method.penalty(task.adapter)
    if penalty is None:  # a method that acts in another way
        return
    assert penalty.shape == () and math.isfinite(penalty.item()) and penalty.item() > 0
    penalty.backward()
    assert any(parameter.grad is not None for parameter in task.adapter.parameters.values())


@each_method
def test_records_count_up_to_their_total(name, args):
    method, task = METHODS[name](toy_settings(), **args), trained_task(ToyBase())
    records = run_task(method, task)
    assert all(isinstance(record, StepRecord) and record.phase != "train" for record in records)
    for phase in {record.phase for record in records}:
        steps = [record.step for record in records if record.phase == phase]
        totals = {record.total for record in records if record.phase == phase}
        assert steps == sorted(steps) and set(steps) == set(range(1, max(steps) + 1)) and totals == {max(steps)}
    assert all(math.isfinite(value) for record in records for value in (record.loss, *record.values.values()))


@each_method
def test_state_round_trip_gives_the_same_penalty(name, args):
    method, task = finished(name, args)
    state = {key: value.clone() for key, value in method.state_dict().items()}
    again = METHODS[name](toy_settings(), **args)
    again.load_state_dict(state)
    again.begin_task(task.adapter)
    assert set(again.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    for parameter in task.adapter.parameters.values():
        parameter.data *= 1.5
    first, second = method.penalty(task.adapter), again.penalty(task.adapter)
    assert (first is None and second is None) or first.item() == second.item()


@each_method
def test_state_is_plain_and_apart_from_theta(name, args):
    method, task = finished(name, args)
    state = method.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    assert all(value.device.type == "cpu" and not value.requires_grad for value in state.values())
    for parameter in task.adapter.parameters.values():
        parameter.data += 1
    assert all(torch.equal(value, kept[key]) for key, value in method.state_dict().items())


@each_method
def test_state_does_not_grow_with_the_tasks(name, args):
    assert sizes(finished(name, args)[0]) == sizes(finished(name, args, seeds=(1, 2, 3, 4))[0])


@each_method
def test_a_method_draws_from_the_task_alone(name, args):
    torch.manual_seed(1)
    first = finished(name, args)[0].state_dict()
    torch.manual_seed(2)
    second = finished(name, args)[0].state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


NEW = """
from .method import Method

NAME = "{name}"


class New(Method):
    pass


METHOD = New
"""


@pytest.fixture
def copied_package(tmp_path, monkeypatch):
    """A copy of the trainer under another name, whose methods folder a test may change."""
    package = tmp_path / "copied_trainer"
    ignored = shutil.ignore_patterns("weights", "samples", "__pycache__")
    shutil.copytree(Path(trainer.__file__).parent, package, ignore=ignored)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "copied_trainer"]:
        del sys.modules[name]


def test_a_file_dropped_in_is_offered(copied_package):
    (copied_package / "methods" / "brand_new.py").write_text(NEW.format(name="brand_new"), encoding="utf-8")
    found = importlib.import_module("copied_trainer.methods").METHODS
    assert set(found) == {*METHODS, "brand_new"} and found["brand_new"].__name__ == "New"
    recipes = importlib.import_module("copied_trainer.recipes")
    recipes.RECIPES["composed"] = recipes.Recipe("A new composition.", {"brand_new": {}, "ewc": {"classifier": True}})
    settings = importlib.import_module("copied_trainer.settings").TrainSettings(recipe="composed")
    assert list(recipes.build_methods(settings)) == ["brand_new", "ewc"]


# All that a person writes to add a method: this file, and one entry in recipes.py.
PULL = """
from torch import Tensor

from ..adapters.adapter import Adapter
from ..task import StepRecord, TrainedTask
from .method import Method

NAME = "pull"


class Pull(Method):
    \"\"\"Pulls theta to 0 once a concept has been taught, and counts the concepts.\"\"\"

    taught = 0

    @property
    def uses(self):
        return {"penalty_weight"}

    def penalty(self, adapter: Adapter) -> Tensor | None:
        if not self.taught:
            return None
        squares = [value.square().sum() for value in adapter.parameters.values()]
        return self.settings.penalty_weight * sum(squares)

    def end_task(self, task: TrainedTask):
        self.taught += 1
        yield StepRecord("pull", 1, 1, 0.0, values={"taught": float(self.taught)})

    def state_dict(self):
        import torch

        return {"taught": torch.tensor(self.taught)}

    def load_state_dict(self, state):
        self.taught = int(state["taught"])


METHOD = Pull
"""
ENTRY = """
RECIPES["lora_pull"] = Recipe("LoRA, pulled to zero.", {"pull": {}})
"""


def test_one_file_and_one_line_are_a_recipe_that_trains(copied_package, tmp_path):
    (copied_package / "methods" / "pull.py").write_text(PULL, encoding="utf-8")
    recipes = copied_package / "recipes.py"
    recipes.write_text(recipes.read_text(encoding="utf-8") + ENTRY, encoding="utf-8")
    own = {name: importlib.import_module(f"copied_trainer.{name}") for name in ("teach", "disk.sequence", "settings")}
    base = ToyBase()
    line = own["disk.sequence"].ConceptSequence.create(tmp_path / "pets", base.fingerprint)
    few = {"steps": 3, "rank": 2, "learning_rate": 0.05, "recipe": "lora_pull"}
    for word in ("fox", "cat", "dog"):
        settings = own["settings"].TrainSettings(**few, penalty_weight=0.5)
        line = own["teach"].teach(ToyBase(base.original), toy_concept(word), settings, line)
    first, second, third = line.tasks
    assert [task.values["taught"] for task in line.tasks] == [1, 2, 3] and third.recipe == "lora_pull"
    assert line.log(first)["penalty"] == [0, 0, 0]
    # At the first step of a task theta is as the last one left it.
    lora = line.adapter_files(second)["lora"].items()
    squares = sum(float(value.square().sum()) for key, value in lora if not key.endswith("alpha"))
    assert line.log(third)["penalty"][0] == pytest.approx(0.5 * squares, rel=1e-5)
    assert importlib.import_module("copied_trainer.recipes").settings_by_recipe()["penalty_weight"][-1] == "lora_pull"


def test_two_files_of_one_name_stop_the_import_with_a_sentence(copied_package):
    (copied_package / "methods" / "other.py").write_text(NEW.format(name="ewc"), encoding="utf-8")
    with pytest.raises(ImportError, match=r"Two files in methods/ call themselves `ewc`: rename one\."):
        importlib.import_module("copied_trainer.methods")


def test_a_file_without_a_name_stops_the_import_with_a_sentence(copied_package):
    nameless = NEW.replace('NAME = "{name}"\n', "")
    (copied_package / "methods" / "nameless.py").write_text(nameless, encoding="utf-8")
    with pytest.raises(ImportError, match=r"`nameless\.py` in methods/ .*NAME"):
        importlib.import_module("copied_trainer.methods")
