"""Forgetting on the embedded base, measured: `python -m benchmarks PLAN`.

Each run teaches a set of concepts in sequence, draws every concept right after its task and after the last one from the
same noise, and adds a row to benchmarks/results/; what is there is not run again, and a run that was killed goes on.
MMD is the unsquared one of trainer/metrics, on features of EfficientNet-Lite0. Sheets of pictures are left in
build/benchmark.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.concepts import inputs_of
from benchmarks.plans import PLANS
from benchmarks.processes import Processes
from benchmarks.rows import also_of, rows_of, table_of
from benchmarks.run import run_job
from trainer.cli.sweeping import add_engine_arguments, engine_of, finish
from trainer.errors import ContinualLoraError
from trainer.sweep.summary import summary
from trainer.sweep.sweep import Sweep


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time with processes (default: %(default)s)")
    add_engine_arguments(parser, "processes", others=("processes",))
    arguments = parser.parse_args()
    plan, folder = PLANS[arguments.plan], Path("build/benchmark") / PLANS[arguments.plan].table
    engine = Processes(arguments.workers) if arguments.engine == "processes" else engine_of(arguments)
    jobs = list(plan.jobs(folder))
    sweep = Sweep(jobs, table_of(plan), folder, also_of(plan))
    try:
        failures = finish(sweep, run_job, engine, inputs_of(jobs), arguments.plan)
    except ContinualLoraError as error:
        sys.exit(str(error))
    print(summary(rows_of(plan), ("recipe", "adapter", "settings", "guidance")))
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
