"""The tables on disk: one row a finished run, appended at once; what is there is not run again."""

import csv
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from benchmarks.plans import Plan
from benchmarks.run import Job, Row, adapter_of, base_name
from trainer.cli.demo import TINY_SETTINGS

RESULTS = Path(__file__).with_name("results")
METRICS = ("a_mmd", "f_mmd", "bwt_mmd", "i2i", "new_mmd", "kid", "t2i", "dc_accuracy")
COSTS = ("seconds_per_task", "peak_mb", "state_bytes")
KEYS = ("recipe", "adapter", "seed", "settings", "guidance", "base")
COLUMNS = ("recipe", "adapter", "seed", "encoder", *METRICS, *COSTS, "settings", "guidance", "base")


def settings_text(job: Job) -> str:
    """The settings that differ from those of the demo, as JSON; the recipe and the seed have columns of their own."""
    plain = asdict(TINY_SETTINGS)
    own = {name: value for name, value in asdict(job.settings).items() if value != plain[name]}
    return json.dumps({name: value for name, value in own.items() if name not in ("recipe", "seed", "adapter")})


def key_of(job: Job) -> tuple[str, ...]:
    """What makes a row the same run as another."""
    return (job.recipe, adapter_of(job), str(job.settings.seed), settings_text(job), f"{job.guidance:.6g}", base_name())


def key_of_row(row: dict[str, str]) -> tuple[str, ...]:
    """The same of a finished run."""
    return tuple(row[name] for name in KEYS)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The finished runs."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, job: Job, row: Row) -> None:
    """Add a finished run."""
    new = not path.exists()
    path.parent.mkdir(exist_ok=True)
    full = {**row, "settings": settings_text(job), "guidance": job.guidance, "base": base_name()}
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow({name: _text(full.get(name, "")) for name in COLUMNS})


def rows_of(plan: Plan) -> list[dict[str, str]]:
    """The rows of the tables that a plan's runs may be in."""
    return [row for name in (plan.table, *plan.also) for row in read_rows(RESULTS / f"{name}.csv")]


def missing(jobs: Iterable[Job], rows: list[dict[str, str]]) -> list[Job]:
    """The jobs whose rows are not there."""
    done = {key_of_row(row) for row in rows}
    return [job for job in jobs if key_of(job) not in done]


def print_table(rows: list[dict[str, str]]) -> None:
    """Mean and standard deviation over the seeds, one line for each recipe, adapter and settings."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in ("recipe", "adapter", "settings", "guidance")), []).append(row)
    print(f"| recipe | adapter | settings | guidance | seeds | {' | '.join((*METRICS, *COSTS))} |")
    print("|---" * (len(METRICS) + len(COSTS) + 5) + "|")
    for named, group in groups.items():
        cells = [mean_and_spread(group, name) for name in (*METRICS, *COSTS)]
        print(f"| {' | '.join(named)} | {len(group)} | {' | '.join(cells)} |")


def mean_and_spread(group: list[dict[str, str]], name: str) -> str:
    """Of a column over the seeds; empty where it has no values."""
    values = [float(row[name]) for row in group if row[name]]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 and name in METRICS else ""
    return f"{statistics.mean(values):.4g}{spread}"


def _text(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
