"""What commands share that make many runs: the flags of the engines, the bar, what is said of runs that failed."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..sweep.engines import Engine, Input, Place
from ..sweep.engines.here import Here
from ..sweep.engines.ray_cluster import RayCluster
from ..sweep.sweep import Failure, Job, Outcome, Sweep

AnyJob = TypeVar("AnyJob", bound=Job)


def add_engine_arguments(parser: argparse.ArgumentParser, default: str, others: tuple[str, ...] = ()) -> None:
    """Where the runs are made.

    Args:
        parser: gets the flags.
        default: an engine.
        others: engines of the command's own.
    """
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        choices=("here", *others, "ray"),
        default=default,
        help="here: one run after another in this process; ray: as tasks of Ray (package ray), on this machine or on "
        "those of the cluster at --address (default: %(default)s)",
    )
    group.add_argument("--address", default="", help="of a Ray cluster, or auto for the one this machine belongs to")
    group.add_argument("--cpus", type=int, default=1, help="cores of each run (default: %(default)s)")
    group.add_argument(
        "--gpus",
        type=float,
        default=0.0,
        help="GPUs of each run with ray; with 0.5 two share one (default: %(default)s)",
    )
    group.add_argument(
        "--cache", type=Path, help="folder on each machine of the cluster for what is sent to it (default: temporary)"
    )


def engine_of(arguments: argparse.Namespace) -> Engine:
    """The engine that the flags say; one of the command's own is up to it."""
    if arguments.engine == "ray":
        return RayCluster(arguments.address, arguments.cpus, arguments.gpus, arguments.cache)
    return Here()


def finish(
    sweep: Sweep[AnyJob],
    function: Callable[[AnyJob, Place], Outcome],
    engine: Engine,
    inputs: Mapping[str, Input],
    label: str,
) -> list[str]:
    """Make the runs that are missing, with a bar; what to say of those that failed."""
    failures = []
    with sweep.alone():
        jobs = sweep.missing()
        done = len(sweep.jobs) - len(jobs)
        with tqdm(total=len(sweep.jobs), initial=done, desc=label, unit="run") as bar:
            for job, outcome in sweep.run(jobs, function, engine, inputs) if jobs else ():
                if isinstance(outcome, Failure):
                    failures.append(f"{job.name}: {outcome.reason}")
                bar.set_postfix_str(job.name, refresh=False)
                bar.update()
    return failures
