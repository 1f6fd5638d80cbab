"""Drivers and Ray's own processes in the tests of sweeps: all are ended with the test, whatever became of it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.sweep.toy import table_of

ROOT = Path(__file__).parents[2]
MARK = "CONTINUAL_LORA_TEST"
PATIENCE = 300.0


def until(happened: Callable[[], object], what: str) -> None:
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


@dataclass(frozen=True)
class Processes:
    """What a test starts.

    Attributes:
        environment: of all; every process that inherits it is found again.
    """

    environment: dict[str, str]

    def start(self, *command: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *command: object) -> str:
        """Its output; it has to succeed."""
        said, code = self.ended(self.start(*command))
        assert code == 0, said[-4000:]
        return said

    def ended(self, process: "subprocess.Popen[str]") -> tuple[str, int]:
        said, _ = process.communicate(timeout=PATIENCE)
        return said, process.returncode

    def ray(self, *arguments: object) -> str:
        return self.run("-m", "ray.scripts.scripts", *arguments)

    def cluster(self, head_cpus: int, other_cpus: int) -> str:
        """Two machines of a Ray cluster on this one, the driver's first; returns the address of the cluster."""
        small = ["--disable-usage-stats", "--object-store-memory", 80 << 20]
        small += ["--min-worker-port", 0, "--max-worker-port", 0, "--node-ip-address"]  # ports of its own for each
        port = free_port()
        head = ["--head", "--port", port, "--include-dashboard", "false", "--num-cpus", head_cpus]
        self.ray("start", *head, *small, "127.0.0.1")
        self.ray("start", "--address", f"127.0.0.1:{port}", "--num-cpus", other_cpus, *small, "127.0.0.2")
        return f"127.0.0.1:{port}"

    def alive(self) -> list[psutil.Process]:
        """All that were started and what those started, wherever they have gone since."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.environment[MARK]:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


@pytest.fixture
def processes() -> Iterator[Processes]:
    # Not in tmp_path, whose name is too long for the sockets of Ray.
    folder = tempfile.mkdtemp(prefix="ray")
    own = uuid.uuid4().hex
    ray = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": own,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_TMPDIR": folder,
    }
    started = Processes(os.environ | ray | {"OMP_NUM_THREADS": "1", MARK: own})
    try:
        yield started
    finally:
        while left := started.alive():
            for process in left:
                process.kill()
            psutil.wait_procs(left, timeout=5)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def starts(folder: Path, job: str = "") -> list[dict[str, object]]:
    """The starts of a job, or of all, in their order."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "starts").glob("*.json"))]
    return [each for each in found if job in ("", each["job"])]


def assert_complete(folder: Path, jobs: list[str]) -> None:
    """Each job has one row and its file."""
    text = (folder / "table.csv").read_text()
    assert text.splitlines()[0] == "job,figure,machine" and text.endswith("\n")
    rows = table_of(folder).rows()
    assert sorted(row["job"] for row in rows) == sorted(jobs)
    assert len({row["figure"] for row in rows}) == 1
    assert all((folder / f"{job}.txt").read_text() == f"{job} is done" for job in jobs)
