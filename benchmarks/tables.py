"""What the rows of a table say, as Markdown and CSV."""

import itertools
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from benchmarks.text_alignment import AlignedText
from trainer.sweep.one_run import COSTS, METRICS
from trainer.sweep.summary import mean_and_spread

Rows = list[dict[str, str]]
NAMES = ("recipe", "adapter", "settings")
LEVELS = (1.26, 1.28, 1.3, 1.32, 1.34, 1.36)  # of new_mmd, at which fronts are compared

# Jha et al., CustomConcept, 6 tasks, 3 seeds: I2I, T2I, KID e3, A_MMD e3, F_MMD, BwT. Their columns are not on one
# scale, so that only orders can be compared.
AUTHORS: dict[str, tuple[float, float, float, float, float, float]] = {
    "textual_inversion": (60.74, 22.86, 205.69, 185.74, 0, 0),
    "custom_diffusion": (69.53, 22.55, 179.4, 121.89, 0.62, -273.41),
    "custom_diffusion_ewc": (69.44, 22.58, 177.99, 121.02, 0.506, -245.7),
    "lora": (61.30, 22.97, 203.11, 176.38, 0.052, -118.56),
    "c_lora": (64.89, 23.07, 173.8, 117.2, 0.034, -107.47),
    "lora_ewc": (73.19, 22.15, 156.91, 105.07, 0.008, -99.34),
    "lora_ewc_dc": (73.41, 22.97, 154.25, 102.81, 0.00052, -102.53),
    "lora_dsc": (73.36, 22.57, 187.2, 198.45, 0.049, -105.79),
    "lora_dsc_ewc": (72.92, 22.89, 143.92, 98.0, 0.02, -94.63),
    "lora_dsc_ewc_dc": (73.17, 22.84, 140.18, 94.1, 0.003, -92.44),
}
# Our metric of each of the authors' columns, and what they call it.
AUTHORS_COLUMNS = {
    "i2i": "I2I, higher",
    "t2i": "T2I, higher",
    "kid": "KID, lower",
    "a_mmd": "A_MMD, lower",
    "f_mmd": "F_MMD, lower",
    "bwt_mmd": "BwT_MMD, higher",
}


def features(rows: Rows) -> str:
    """Whose features the figures of a table come from."""
    encoders = ", ".join(dict.fromkeys(row["encoder"] for row in rows))
    return f"Features: {encoders}; of T2I: {AlignedText.name}. MMD is the unsquared one."


def results_table(rows: Rows) -> str:
    """A line for each recipe, adapter and setting: mean and standard deviation over the seeds."""
    names = (*METRICS, *COSTS)
    lines = [f"| recipe | adapter | settings | seeds | {' | '.join(names)} |", "|---" * (len(names) + 4) + "|"]
    for group in grouped(rows, lambda row: tuple(row[name] for name in NAMES)).values():
        cells = [mean_and_spread(group, name) for name in names]
        lines.append(f"| {' | '.join(group[0][name] for name in NAMES)} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def authors_table(rows: Rows) -> str:
    """The authors' table in their order and columns: ours, mean and standard deviation, and theirs in brackets."""
    groups = by_recipe(rows)
    lines = [f"| recipe | {' | '.join(AUTHORS_COLUMNS.values())} |", "|---" * (len(AUTHORS_COLUMNS) + 1) + "|"]
    for recipe, theirs in AUTHORS.items():
        if recipe in groups:
            ours = [mean_and_spread(groups[recipe], metric) for metric in AUTHORS_COLUMNS]
            cells = [f"{mine} ({value:g})" for mine, value in zip(ours, theirs, strict=True)]
            lines.append(f"| `{recipe}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement_table(rows: Rows) -> str:
    """For each metric of the authors: in how many pairs of recipes ours are in the same order.

    A pair counts as decided here if the means differ by more than the sum of both standard deviations.
    """
    groups = by_recipe(rows)
    known = [recipe for recipe in AUTHORS if recipe in groups]
    lines = ["| metric | the same order | the other order | not decided | which are the other way |", "|---" * 5 + "|"]
    for column, metric in enumerate(AUTHORS_COLUMNS):
        same, undecided, other = 0, 0, []
        for one, two in itertools.combinations(known, 2):
            (a, spread_a), (b, spread_b) = (means(groups[recipe], metric) for recipe in (one, two))
            theirs = AUTHORS[one][column] - AUTHORS[two][column]
            if abs(a - b) <= spread_a + spread_b or theirs == 0:
                undecided += 1
            elif (a - b) * theirs > 0:
                same += 1
            else:
                other.append(f"{one}/{two}")
        lines.append(f"| {metric} | {same} | {len(other)} | {undecided} | {', '.join(other)} |")
    return "\n".join(lines)


def front_lines(rows: Rows) -> dict[object, Rows]:
    """The rows of each penalty method."""
    return grouped(rows, lambda row: f"{row['recipe']}{' (update)' if 'fisher_space' in row['settings'] else ''}")


def front_table(rows: Rows) -> str:
    """What each penalty method forgets where it learns equally well: F_MMD at levels of new_mmd.

    Between its strengths each seed's front is taken for straight; a level that one of the seeds does not reach is
    left out.
    """
    lines = [
        f"| F_MMD where new is | {' | '.join(f'{level:g}' for level in LEVELS)} |",
        "|---" * (len(LEVELS) + 1) + "|",
    ]
    for name, group in front_lines(rows).items():
        fronts = [
            np.array(sorted((float(row["new_mmd"]), float(row["f_mmd"])) for row in seed)).T
            for seed in grouped(group, lambda row: row["seed"]).values()
        ]
        cells = []
        for level in LEVELS:
            reached = all(new[0] <= level <= new[-1] for new, _ in fronts)
            found = [float(np.interp(level, *front)) for front in fronts] if reached else []
            cells.append(f"{statistics.mean(found):.3f} ± {statistics.stdev(found):.3f}" if found else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def growth_table(logs: dict[str, Path]) -> str:
    """What every task of a run cost, as CSV."""
    lines = ["recipe,task,seconds,carried_bytes,sequence_bytes"]
    for recipe, log in logs.items():
        costs = log.read_text(encoding="utf-8").splitlines()
        lines += [f"{recipe},{task},{cost}" for task, cost in enumerate(costs, start=1)]
    return "\n".join(lines) + "\n"


def grouped(rows: Rows, key: Callable[[dict[str, str]], object]) -> dict[object, Rows]:
    """Rows by a key, in the order in which it comes up."""
    groups: dict[object, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def by_recipe(rows: Rows) -> dict[object, Rows]:
    """The rows of what the authors trained, that is without VeRA."""
    return grouped([row for row in rows if row["adapter"] != "vera"], lambda row: row["recipe"])


def means(group: Iterable[dict[str, str]], name: str) -> tuple[float, float]:
    """Mean and standard deviation of a column."""
    values = [float(row[name]) for row in group]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
