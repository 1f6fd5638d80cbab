"""Runs that leave a trace and wait to be let go: `python -m tests.sweep.toy FOLDER ENGINE [ADDRESS] -- JOB ...`.

A job "slow-..." waits until there is a file `go`. Every start leaves a file in `starts`, so that a test sees how often
a job was started, in which process and under which machine's raylet.
"""

import hashlib
import json
import os
import sys
import time
import uuid
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trainer.cli.sweeping import finish
from trainer.errors import ContinualLoraError
from trainer.sweep.engines import Input, Place
from trainer.sweep.engines.here import Here
from trainer.sweep.engines.ray_cluster import RayCluster
from trainer.sweep.sweep import Outcome, Sweep
from trainer.sweep.table import Table

COLUMNS = ("job", "figure", "machine")


@dataclass(frozen=True)
class ToyJob:
    name: str

    @property
    def identity(self) -> dict[str, str]:
        return {"job": self.name}


def table_of(folder: Path) -> Table:
    return Table(folder / "table.csv", COLUMNS)


def toy(folder: Path, job: ToyJob, place: Place) -> Outcome:
    """Its figure is the sha256 of what it was given to read."""
    root = place.inputs["data"].root
    content = hashlib.sha256((root / "deep" / "large.bin").read_bytes()).hexdigest()
    start = {
        "job": job.name,
        "process": os.getpid(),
        "raylet": os.getppid(),
        "root": str(root),
        "work": str(place.work),
    }
    start |= {"unpacked": (root / "deep" / "large.bin").stat().st_ino}
    (folder / "starts").mkdir(exist_ok=True)
    path = folder / "starts" / f"{time.time_ns()}-{uuid.uuid4().hex}.json"
    path.with_suffix(".new").write_text(json.dumps(start))
    path.with_suffix(".new").rename(path)
    if job.name.startswith("bad"):
        raise ContinualLoraError("It should be good.", f"It is {job.name}.", "Leave it out.")
    while job.name.startswith("slow") and not (folder / "go").exists():
        time.sleep(0.05)
    return Outcome({"figure": content[:12]}, {".txt": f"{job.name} is done".encode()})


def data_in(folder: Path) -> Input:
    """Two megabytes and an empty file."""
    root = folder / "data"
    (root / "deep").mkdir(parents=True, exist_ok=True)
    files = (root / "deep" / "large.bin", root / "empty.txt")
    files[0].write_bytes(bytes(range(256)) * 8192)
    files[1].write_bytes(b"")
    return Input(root, files)


def main(folder: Path, engine: str, address: str, names: list[str]) -> None:
    made = Here() if engine == "here" else RayCluster(address, cache=folder / "cache")
    sweep = Sweep([ToyJob(name) for name in names], table_of(folder), folder)
    try:
        failures = finish(sweep, partial(toy, folder), made, {"data": data_in(folder)}, "toy")
    except ContinualLoraError as error:
        sys.exit(str(error))
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    own, jobs = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    main(Path(own[0]), own[1], own[2] if len(own) > 2 else "", jobs)
