"""A sweep in this process: what is finished is not run again, what fails does not stop the others."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sweep.toy import ToyJob, data_in, table_of, toy
from trainer.cli.sweeping import finish
from trainer.errors import ContinualLoraError
from trainer.sweep.engines import Place
from trainer.sweep.engines.here import Here
from trainer.sweep.engines.ray_cluster import RayCluster
from trainer.sweep.sweep import Outcome, Sweep
from trainer.sweep.table import Table

from .conftest import Processes, assert_complete, starts, until


def finish_toy(folder: Path, names: list[str]) -> list[str]:
    sweep = Sweep([ToyJob(name) for name in names], table_of(folder), folder)
    return finish(sweep, partial(toy, folder), Here(), {"data": data_in(folder)}, "toy")


def test_each_job_is_run_once(tmp_path: Path) -> None:
    assert finish_toy(tmp_path, ["a", "b", "a"]) == []
    assert_complete(tmp_path, ["a", "b"])
    assert finish_toy(tmp_path, ["b", "c", "a"]) == []
    assert_complete(tmp_path, ["a", "b", "c"])
    assert [start["job"] for start in starts(tmp_path)] == ["a", "b", "c"]


def test_a_row_of_another_table_counts(tmp_path: Path) -> None:
    other = table_of(tmp_path / "other")
    other.append({"job": "a"})
    sweep = Sweep([ToyJob("a"), ToyJob("b")], table_of(tmp_path), tmp_path, also=(other,))
    assert finish(sweep, partial(toy, tmp_path), Here(), {"data": data_in(tmp_path)}, "toy") == []
    assert_complete(tmp_path, ["b"])


def test_a_run_that_fails_is_named_and_not_in_the_table(tmp_path: Path) -> None:
    assert finish_toy(tmp_path, ["a", "bad", "b"]) == ["bad: It should be good. It is bad. Leave it out."]
    assert_complete(tmp_path, ["a", "b"])


def test_what_is_finished_is_on_disk_when_the_next_one_starts(tmp_path: Path) -> None:
    seen = []

    def look(job: ToyJob, place: Place) -> Outcome:
        seen.append([row["job"] for row in Table(tmp_path / "table.csv", ["job"]).rows()])
        return Outcome({}, {".txt": b"x"})

    sweep = Sweep([ToyJob("a"), ToyJob("b")], Table(tmp_path / "table.csv", ["job"]), tmp_path)
    finish(sweep, look, Here(), {}, "toy")
    assert seen == [[], ["a"]]


def test_a_second_driver_is_told_of_the_first(processes: Processes, tmp_path: Path) -> None:
    driver = processes.start("-m", "tests.sweep.toy", tmp_path, "here", "--", "slow-1")
    until(lambda: starts(tmp_path), "the start of the run")
    with pytest.raises(ContinualLoraError, match=rf"Process {driver.pid} on `.+` is running a sweep in it since"):
        finish_toy(tmp_path, ["slow-1"])
    (tmp_path / "go").touch()
    said, code = processes.ended(driver)
    assert code == 0, said
    assert_complete(tmp_path, ["slow-1"])


def ray_that_refuses(*_: object, **__: object) -> None:
    raise ConnectionError("nothing answers there")


@pytest.mark.parametrize(
    ("package", "sentence"),
    [
        (None, "Run `python -m pip install ray` on every machine"),
        (
            SimpleNamespace(init=ray_that_refuses),
            r"not `far:1`\. Ray says: nothing answers there\. Start one",
        ),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: object, sentence: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", package)
    with pytest.raises(ContinualLoraError, match=sentence):
        list(RayCluster("far:1").results(partial(toy, tmp_path), [ToyJob("a")], Place({}, tmp_path)))
