"""What the tables say, as Markdown and figures: `python -m benchmarks.report` writes docs/benchmark/."""

from pathlib import Path

from PIL import Image

from benchmarks.figures import (
    draw_front,
    draw_growth,
    draw_norms,
    outer_columns,
    stack_sheets,
    whole,
    without_first_row,
)
from benchmarks.job import Job
from benchmarks.plans import PLANS
from benchmarks.rows import RESULTS, key_of_row, rows_of
from benchmarks.tables import Rows, agreement_table, authors_table, features, front_table, growth_table, results_table

DOCS = Path(__file__).parents[1] / "docs" / "benchmark"
BUILD = Path("build/benchmark")
PICTURED = ("lora", "lora_ewc_dc", "lora_dsc_ewc_dc")
PICTURED_LONG = ("lora", "lora_ewc_dc", "lora_dsc_ewc_dc", "c_lora")
NORMS = ("lora", "lora_ewc", "merge_and_reinit", "c_lora")


def planned(plan: str) -> Rows:
    """The rows of a plan's runs, in its order; a run that was not made is left out."""
    made = {key_of_row(row): row for row in rows_of(PLANS[plan])}
    keys = [tuple(job.identity.values()) for job in PLANS[plan].jobs(Path())]
    return [made[key] for key in keys if key in made]


def first_runs(plan: str) -> dict[str, Job]:
    """A plan's runs of seed 0 without VeRA, by recipe."""
    jobs = [job for job in PLANS[plan].jobs(BUILD / PLANS[plan].table) if job.settings.seed == 0]
    return {job.recipe: job for job in jobs if job.settings.adapter == "lora"}


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
        ("table", PICTURED, "forgetting.png", whole),
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
        parts += ["## front", "![Forgetting against learning](front.png)", front_table(rows)]
        parts += [features(rows), results_table(rows)]
    (DOCS / "tables.md").write_text("# Benchmark tables\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    print(DOCS / "tables.md")


if __name__ == "__main__":
    main()
