"""kill -9 of a worker, of the driver and of a machine of a Ray cluster: every run has its row, and one only."""

import os
import signal
import subprocess
from pathlib import Path

import psutil

from .conftest import Processes, assert_complete, starts, until

TOY = ("-m", "tests.sweep.toy")


def kill(pid: object) -> None:
    os.kill(int(str(pid)), signal.SIGKILL)


def test_a_worker_is_killed(processes: Processes, tmp_path: Path) -> None:
    jobs = ["slow-1", "fast-1", "fast-2"]
    driver = processes.start(*TOY, tmp_path, "ray", "--", *jobs)
    until(lambda: starts(tmp_path, "slow-1"), "the start of the slow run")
    kill(starts(tmp_path, "slow-1")[0]["process"])
    until(lambda: len(starts(tmp_path, "slow-1")) == 2, "its second start")
    (tmp_path / "go").touch()
    said, code = processes.ended(driver)
    assert code == 0, said
    assert_complete(tmp_path, jobs)
    assert [each["job"] for each in starts(tmp_path)].count("fast-1") == 1
    until(lambda: not processes.alive(), "the end of Ray")


def test_the_driver_is_killed(processes: Processes, tmp_path: Path) -> None:
    jobs, table = ["fast-1", "slow-1", "slow-2"], tmp_path / "table.csv"
    driver = processes.start(*TOY, tmp_path, "ray", "--", *jobs)
    until(lambda: table.exists() and table.read_text().count("\n") == 2, "the first row")
    until(lambda: starts(tmp_path, "slow-1"), "the start of a slow run")
    driver.kill()
    driver.communicate()
    # As if it had been in the middle of a row.
    with table.open("ab") as file:
        file.write(b"slow-1,0123")
    (tmp_path / "go").touch()
    processes.run(*TOY, tmp_path, "ray", "--", *jobs)
    assert_complete(tmp_path, jobs)
    assert len(starts(tmp_path, "fast-1")) == 1
    assert len(starts(tmp_path, "slow-1")) == 2
    # Nothing is left to run.
    before = len(starts(tmp_path))
    processes.run(*TOY, tmp_path, "ray", "--", *jobs)
    assert len(starts(tmp_path)) == before


def test_a_machine_is_killed(processes: Processes, tmp_path: Path) -> None:
    address = processes.cluster(1, 2)
    jobs = ["slow-1", "slow-2", "slow-3", "fast-1"]
    driver = processes.start(*TOY, tmp_path, "ray", address, "--", *jobs)
    try:
        until(lambda: len(starts(tmp_path)) == 3, "the start of three runs on two machines")
        away = [each for each in starts(tmp_path) if str(each["work"]) != str(tmp_path)]
        assert len(away) == 2 and len({each["raylet"] for each in starts(tmp_path)}) == 2
        # What the other machine reads was sent there, and unpacked once for both of its runs.
        assert {each["root"] for each in away} == {str(folder) for folder in (tmp_path / "cache").glob("?" * 64)}
        assert len({each["unpacked"] for each in away}) == 1
        raylet = psutil.Process(int(str(away[0]["raylet"])))
        assert "raylet" in raylet.name()
        kill(raylet.pid)
        until(lambda: not any(psutil.pid_exists(int(str(each["process"]))) for each in away), "the end of its runs")
        (tmp_path / "go").touch()
        said, code = processes.ended(driver)
    except subprocess.TimeoutExpired:
        driver.kill()
        raise AssertionError(driver.communicate()[0]) from None
    assert code == 0, said
    assert_complete(tmp_path, jobs)
    for each in away:
        again = starts(tmp_path, str(each["job"]))
        assert len(again) >= 2 and again[-1]["raylet"] != raylet.pid
