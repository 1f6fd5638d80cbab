"""What a table says, averaged over the seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from .one_run import COSTS, METRICS

Row = Mapping[str, str]


def summary(rows: Iterable[Row], named: Sequence[str]) -> str:
    """Markdown: mean and standard deviation over the seeds, a line for each group.

    Args:
        rows: of the table.
        named: the columns that make a group.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in named), []).append(row)
    head = [*named, "seeds", *METRICS, *COSTS]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for names, group in groups.items():
        cells = [mean_and_spread(group, name) for name in (*METRICS, *COSTS)]
        lines.append(f"| {' | '.join(names)} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_and_spread(group: Sequence[Row], name: str) -> str:
    """Of a column over the seeds; empty where it has no values."""
    values = [float(row[name]) for row in group if row[name]]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 and name in METRICS else ""
    return f"{statistics.mean(values):.4g}{spread}"
