"""Forgetting on the embedded base, measured: `python -m benchmarks PLAN`.

Each run teaches a set of concepts in sequence, draws every concept right after its task and after the last one from the
same noise, and adds a row to benchmarks/results/; what is there is not run again, and a run that was killed goes on.
MMD is the unsquared one of trainer/metrics, on features of EfficientNet-Lite0. Sheets of pictures are left in
build/benchmark.
"""

import argparse
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from benchmarks.plans import PLANS
from benchmarks.rows import RESULTS, append_row, missing, print_table, rows_of
from benchmarks.run import run_job


def main() -> None:
    """Run what is missing, two runs at a time with one thread each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--workers", type=int, default=2, help="runs at a time (default: %(default)s)")
    args = parser.parse_args()
    plan = PLANS[args.plan]
    jobs = missing(plan.jobs(Path("build/benchmark") / plan.table), rows_of(plan))
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        for job, row in tqdm(pool.imap_unordered(run_job, jobs), total=len(jobs), desc=args.plan):
            append_row(RESULTS / f"{plan.table}.csv", job, row)
    print_table(rows_of(plan))


if __name__ == "__main__":
    main()
