"""The tables in results/: one row a finished run; what is there is not run again."""

from pathlib import Path

from benchmarks.plans import Plan
from trainer.sweep.one_run import COSTS, METRICS
from trainer.sweep.table import Table

RESULTS = Path(__file__).with_name("results")
KEYS = ("recipe", "adapter", "seed", "settings", "guidance", "base")
COLUMNS = ("recipe", "adapter", "seed", "encoder", *METRICS, *COSTS, "settings", "guidance", "base")


def table_of(plan: Plan) -> Table:
    """The table that a plan's rows are added to."""
    return Table(RESULTS / f"{plan.table}.csv", COLUMNS)


def also_of(plan: Plan) -> tuple[Table, ...]:
    """Other tables that a plan's runs may be in."""
    return tuple(Table(RESULTS / f"{name}.csv", COLUMNS) for name in plan.also)


def rows_of(plan: Plan) -> list[dict[str, str]]:
    """The rows of the tables that a plan's runs may be in."""
    return [row for table in (table_of(plan), *also_of(plan)) for row in table.rows()]


def key_of_row(row: dict[str, str]) -> tuple[str, ...]:
    """What makes a finished run the same as another; of a job these are the values of its `identity`."""
    return tuple(row[name] for name in KEYS)
