"""What the tables say, as Markdown and figures: `python -m benchmarks.report` writes docs/benchmark/."""

import itertools
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from PIL import Image

from benchmarks.job import Job
from benchmarks.plans import PLANS
from benchmarks.rows import RESULTS, key_of_row, rows_of
from benchmarks.text_alignment import AlignedText
from trainer.plots import CELL, GAP, MARGIN
from trainer.sweep.one_run import COSTS, METRICS
from trainer.sweep.summary import mean_and_spread

DOCS = Path(__file__).parents[1] / "docs" / "benchmark"
BUILD = Path("build/benchmark")
PICTURED = ("lora", "lora_ewc_dc", "lora_dsc_ewc_dc")
PICTURED_LONG = ("lora", "lora_ewc_dc", "lora_dsc_ewc_dc", "c_lora")
NORMS = ("lora", "lora_ewc", "merge_and_reinit", "c_lora")
Rows = list[dict[str, str]]
NAMES = ("recipe", "adapter", "settings")

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


def planned(plan: str) -> Rows:
    """The rows of a plan's runs, in its order; a run that was not made is left out."""
    made = {key_of_row(row): row for row in rows_of(PLANS[plan])}
    keys = [tuple(job.identity.values()) for job in PLANS[plan].jobs(Path())]
    return [made[key] for key in keys if key in made]


def first_runs(plan: str) -> dict[str, Job]:
    """A plan's runs of seed 0 without VeRA, by recipe."""
    jobs = [job for job in PLANS[plan].jobs(BUILD / PLANS[plan].table) if job.settings.seed == 0]
    return {job.recipe: job for job in jobs if job.settings.adapter == "lora"}


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
            ours = [mean_and_spread(groups[recipe], metric) or "-" for metric in AUTHORS_COLUMNS]
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
        if not all(row[metric] for recipe in known for row in groups[recipe]):  # T2I in rows of an earlier version
            continue
        same, undecided, other = 0, 0, []
        for one, two in itertools.combinations(known, 2):
            (a, spread_a), (b, spread_b) = (_mean_spread(groups[recipe], metric) for recipe in (one, two))
            theirs = AUTHORS[one][column] - AUTHORS[two][column]
            if abs(a - b) <= spread_a + spread_b or theirs == 0:
                undecided += 1
            elif (a - b) * theirs > 0:
                same += 1
            else:
                other.append(f"{one}/{two}")
        lines.append(f"| {metric} | {same} | {len(other)} | {undecided} | {', '.join(other)} |")
    return "\n".join(lines)


def draw_front(rows: Rows, path: Path) -> None:
    """Stability against plasticity: a line for each penalty method, a point for each strength.

    Bars are standard deviations over the seeds. A method is better where its line lies lower.
    """
    mpl.rcParams["svg.hashsalt"] = "front"
    figure, axes = plt.subplots(figsize=(8, 5.5))
    lines = grouped(rows, lambda row: f"{row['recipe']}{' (update)' if 'fisher_space' in row['settings'] else ''}")
    for number, (name, group) in enumerate(lines.items()):
        points = grouped(group, lambda row: row["settings"]).values()
        at = [(_mean_spread(point, "new_mmd"), _mean_spread(point, "f_mmd")) for point in points]
        (x, dx), (y, dy) = ([[value[k] for value in side] for k in (0, 1)] for side in zip(*at, strict=True))
        axes.errorbar(x, y, yerr=dy, xerr=dx, label=name, marker="o", capsize=2, linewidth=1, color=f"C{number}")
    axes.set_xlabel("new concepts right after their task: MMD to the real images (lower learns more)")
    axes.set_ylabel("forgetting: F_MMD (lower keeps more)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_norms(logs: dict[str, Path], path: Path) -> None:
    """The norm of what is trained over all steps of a sequence, one line for each recipe; tasks begin at the bars.

    With C-LoRA that is the concept's own update, which starts at zero, not the sum of the earlier ones.

    Args:
        logs: recipe -> the log that its run left, a line for each task.
        path: of the picture.
    """
    figure, axes = plt.subplots(figsize=(8, 4))
    for name, log in logs.items():
        tasks = [[float(value) for value in line.split(",")] for line in log.read_text(encoding="utf-8").splitlines()]
        axes.plot([value for task in tasks for value in task], label=name, linewidth=1)
    for number in range(1, len(tasks)):
        axes.axvline(sum(map(len, tasks[:number])), color="0.85", zorder=0)
    axes.set_xlabel("step")
    axes.set_ylabel("Frobenius norm of the update")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def growth_table(logs: dict[str, Path]) -> str:
    """What every task of a run cost, as CSV."""
    lines = ["recipe,task,seconds,carried_bytes,sequence_bytes"]
    for recipe, log in logs.items():
        costs = log.read_text(encoding="utf-8").splitlines()
        lines += [f"{recipe},{task},{cost}" for task, cost in enumerate(costs, start=1)]
    return "\n".join(lines) + "\n"


def draw_growth(logs: dict[str, Path], path: Path) -> None:
    """Seconds of each task, and bytes that it leaves, over the turn of the task; one line for each recipe."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for number, (name, log) in enumerate(logs.items()):
        rows = [[float(value) for value in line.split(",")] for line in log.read_text(encoding="utf-8").splitlines()]
        seconds, carried, whole = zip(*rows, strict=True)
        turns, color = range(1, len(rows) + 1), f"C{number}"
        left.plot(turns, seconds, label=name, linewidth=1, color=color)
        right.plot(turns, [size / 2**20 for size in carried], label=name, linewidth=1, color=color)
        right.plot(turns, [size / 2**20 for size in whole], linestyle=":", linewidth=1, color=color)
    for axes, label in ((left, "seconds of the task"), (right, "MiB for the next task (dotted: of all tasks)")):
        axes.set_xlabel("task")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def stack_sheets(pictures: list[Image.Image], path: Path) -> None:
    """The sheets of several runs under each other."""
    stack = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        stack.paste(picture, (stack.width - picture.width, top))
        top += picture.height
    stack.quantize(256).save(path, optimize=True)


def _whole(sheet: Image.Image) -> Image.Image:
    return sheet


def without_first_row(sheet: Image.Image) -> Image.Image:
    """Of three: the real photographs are not ours to ship."""
    begin, end = (sheet.height - MARGIN + GAP - rows * (CELL + GAP) for rows in (3, 2))
    cut = Image.new("RGB", (sheet.width, sheet.height - CELL - GAP), "white")
    cut.paste(sheet.crop((0, 0, sheet.width, begin)), (0, 0))
    cut.paste(sheet.crop((0, end, sheet.width, sheet.height)), (0, begin))
    return cut


def outer_columns(sheet: Image.Image) -> Image.Image:
    """Of fifty: the first four and the last three."""
    step = CELL + GAP
    last, first = sheet.width - MARGIN + GAP - 3 * step, sheet.width - MARGIN + GAP - 50 * step
    cut = Image.new("RGB", (first + 7 * step - GAP + MARGIN, sheet.height), "white")
    cut.paste(sheet.crop((0, 0, first + 4 * step, sheet.height)), (0, 0))
    cut.paste(sheet.crop((last, 0, sheet.width, sheet.height)), (first + 4 * step, 0))
    return cut


def grouped(rows: Rows, key: Callable[[dict[str, str]], object]) -> dict[object, Rows]:
    """Rows by a key, in the order in which it comes up."""
    groups: dict[object, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def by_recipe(rows: Rows) -> dict[object, Rows]:
    """The rows of what the authors trained, that is without VeRA."""
    return grouped([row for row in rows if row["adapter"] != "vera"], lambda row: row["recipe"])


def _mean_spread(group: Iterable[dict[str, str]], name: str) -> tuple[float, float]:
    values = [float(row[name]) for row in group]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    """Write what the tables that are there have to say."""
    DOCS.mkdir(parents=True, exist_ok=True)
    parts = []
    for plan in ("quick", "table", "photos", "long"):
        if rows := planned(plan):
            parts += [f"## {plan}", features(rows), results_table(rows)]
    for plan in ("table", "photos"):
        if rows := planned(plan):
            parts += [f"## The authors' table and {plan}: ours (theirs)", features(rows), authors_table(rows)]
            parts += [f"## The order of the recipes in {plan} against the authors'", agreement_table(rows)]
    for plan, recipes, picture, cut in (
        ("table", PICTURED, "forgetting.png", _whole),
        ("photos", PICTURED, "photos.png", without_first_row),
        ("long", PICTURED_LONG, "long.png", outer_columns),
    ):
        made = first_runs(plan)
        sheets = [made[recipe].sheet for recipe in recipes]
        if all(sheet.exists() for sheet in sheets):
            stack_sheets([cut(Image.open(sheet).convert("RGB")) for sheet in sheets], DOCS / picture)
    logs = {recipe: first_runs("table")[recipe].norms for recipe in NORMS}
    if all(log.exists() for log in logs.values()):
        draw_norms(logs, DOCS / "norms.png")
    if (DOCS / "norms.png").exists():  # perhaps of an earlier report
        parts += ["## What is trained", "![Norms over the steps](norms.png)"]
    # A run that went on after it was killed does not know what its tasks cost.
    grown = {recipe: job.costs for recipe, job in first_runs("long").items() if job.costs.exists()}
    if grown:
        draw_growth(grown, DOCS / "growth.png")
        (RESULTS / "growth.csv").write_text(growth_table(grown), encoding="utf-8")
    if (DOCS / "growth.png").exists():
        parts += ["## How cost grows over fifty tasks", "![Seconds and bytes over the tasks](growth.png)"]
    rows = planned("front")
    if len(rows) == len(list(PLANS["front"].jobs(Path()))):  # half a front would mislead
        draw_front(rows, DOCS / "front.png")
        parts += ["## front", "![Forgetting against learning](front.png)", features(rows), results_table(rows)]
    (DOCS / "tables.md").write_text("# Benchmark tables\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    print(DOCS / "tables.md")


if __name__ == "__main__":
    main()
