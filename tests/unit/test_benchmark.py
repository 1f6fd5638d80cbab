"""The benchmark's bookkeeping: a finished run is found again, plans do not repeat themselves, figures by hand."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import rows
from benchmarks.figures import draw_growth, outer_columns, without_first_row
from benchmarks.plans import GUIDANCE, PLANS, RATES, STRENGTH, STRENGTHS, job
from benchmarks.rows import COLUMNS, KEYS, key_of_row, rows_of, table_of
from benchmarks.tables import (
    AUTHORS,
    agreement_table,
    authors_table,
    features,
    front_table,
    growth_table,
    results_table,
)
from trainer.plots import image_grid
from trainer.recipes import RECIPES
from trainer.sweep.summary import mean_and_spread
from trainer.sweep.sweep import without_row
from trainer.sweep.table import Table


def key_of(job):
    assert tuple(job.identity) == KEYS
    return tuple(job.identity.values())


@pytest.mark.parametrize("plan", PLANS)
def test_a_finished_run_is_found_again(plan, tmp_path):
    jobs, table = list(PLANS[plan].jobs(Path("work"))), Table(tmp_path / "results" / "table.csv", COLUMNS)
    assert len({key_of(each) for each in jobs}) == len({each.sheet for each in jobs}) == len(jobs)
    for each in jobs[::2]:
        table.append(each.identity)
    assert without_row(jobs, table.rows()) == jobs[1::2]
    assert [key_of_row(row) for row in table.rows()] == [key_of(each) for each in jobs[::2]]


def test_rows_of_earlier_versions_count_as_done():
    # Written before there were engines; the whole plan is there.
    assert len(rows_of(PLANS["quick"])) == 9 and without_row(PLANS["quick"].jobs(Path()), rows_of(PLANS["quick"])) == []
    head = table_of(PLANS["table"]).path.read_text(encoding="utf-8").splitlines()[0]
    assert head.split(",") == list(COLUMNS)


def test_the_table_has_every_recipe_and_vera():
    made = {(each.recipe, each.settings.adapter) for each in PLANS["table"].jobs(Path())}
    assert {recipe for recipe, _ in made} == {*RECIPES, "joint"} and set(AUTHORS) <= set(RECIPES)
    assert {recipe for recipe, adapter in made if adapter == "vera"} >= {"lora", "lora_ewc_dc"}


def test_the_front_has_five_strengths_and_three_seeds_of_every_penalty():
    points = {}
    for each in PLANS["front"].jobs(Path()):
        name = (each.recipe, each.settings.fisher_space)
        points.setdefault(name, set()).add((each.settings.penalty_weight, each.settings.seed))
    assert all(len({weight for weight, _ in found}) >= 5 for found in points.values()) and len(STRENGTHS) == 5
    assert all({seed for _, seed in found} == {0, 1, 2} for found in points.values())
    penalized = {"lora_ewc", "lora_ewc_dc", "lora_dsc_ewc", "lora_dsc_ewc_dc", "c_lora", "custom_diffusion_ewc"}
    assert {recipe for recipe, _ in points} == penalized and ("lora_ewc_dc", "update") in points


def test_settings_are_never_chosen_on_what_is_reported():
    for name, plan in PLANS.items():
        sets = {each.concepts for each in plan.jobs(Path())}
        assert (sets == {"tuning"}) == (plan.table == "tuning"), name


def tuned(plan, seed="0"):
    """The jobs of a plan with their rows."""
    found = {key_of_row(row): row for row in table_of(PLANS[plan]).rows()}
    return [(each, found[key_of(each)]) for each in PLANS[plan].jobs(Path()) if str(each.settings.seed) == seed]


def kind_of(each):
    return f"vera {each.recipe}" if each.settings.adapter == "vera" else each.recipe


def test_the_strengths_are_those_that_the_trials_chose():
    trials = {}
    for each, made in tuned("strengths"):
        if each.settings.penalty_weight and each.settings.fisher_space == "parameters":
            trials.setdefault(kind_of(each), []).append((float(made["a_mmd"]), each.settings.penalty_weight))
    assert {kind: min(found)[1] for kind, found in trials.items()} == STRENGTH


def test_the_rates_are_those_that_the_trials_chose():
    trials = {}
    for each, made in tuned("rates"):
        name = "token_learning_rate" if each.recipe == "textual_inversion" else "learning_rate"
        found = trials.setdefault("vera" if each.settings.adapter == "vera" else each.recipe, {})
        found[getattr(each.settings, name)] = float(made["new_mmd"])
    for kind, found in trials.items():
        (chosen,) = RATES[kind].values()
        assert found[chosen] < min(found.values()) + 0.001, kind  # the third digit is what docs/benchmark.md tells
    chosen = min((float(made["new_mmd"]), each.guidance) for each, made in tuned("guidance"))[1]
    assert chosen == GUIDANCE


def test_a_row_of_another_table_counts_only_if_its_concepts_are_the_same():
    sets = {plan.table: {each.concepts for each in plan.jobs(Path())} for plan in PLANS.values()}
    shared = [(plan.table, also) for plan in PLANS.values() for also in plan.also]
    assert ("front", "table") in shared and all(sets[one] == sets[other] for one, other in shared)


def test_what_the_table_and_the_front_share_is_run_once(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    made = {key_of(each): each for each in PLANS["table"].jobs(Path())}
    wanted = list(PLANS["front"].jobs(Path()))
    shared = [each for each in wanted if key_of(each) in made]
    assert len(shared) >= 3 * len({each.recipe for each in wanted})  # the chosen strength of each, three seeds
    for each in shared:
        table_of(PLANS["table"]).append(each.identity)
    assert without_row(wanted, rows_of(PLANS["front"])) == [each for each in wanted if each not in shared]


def test_mean_and_spread_by_hand():
    group = [{"a_mmd": "1", "peak_mb": "10"}, {"a_mmd": "2", "peak_mb": "20"}, {"a_mmd": "3", "peak_mb": "30"}]
    assert mean_and_spread(group, "a_mmd") == "2 ± 1" and mean_and_spread(group, "peak_mb") == "20"
    assert mean_and_spread([{"t2i": ""}], "t2i") == ""


def row(recipe, seed, value):
    figures = {"a_mmd": value, "f_mmd": value, "bwt_mmd": -value, "i2i": 100 - value, "t2i": value, "kid": value}
    filled = {name: str(figure) for name, figure in figures.items()}
    names = ("new_mmd", "dc_accuracy", "seconds_per_task", "peak_mb", "state_bytes")
    return {
        "recipe": recipe,
        "adapter": "lora",
        "seed": str(seed),
        "settings": "{}",
        **dict.fromkeys(names, ""),
        **filled,
    }


def test_orders_against_the_authors():
    # Two seeds each: 10 +- 0.7 and 20 +- 0.7 are decided, 20 and 21 are not.
    measured = [row(recipe, seed, value + seed) for recipe, value in FIGURES.items() for seed in (0, 1)]
    lines = {line.split("|")[1].strip(): line for line in agreement_table(measured).splitlines()}
    # The authors' A_MMD: lora 176, lora_ewc 105, lora_ewc_dc 103. Here lora is the best, which is wrong twice.
    assert lines["a_mmd"].split("|")[2:5] == [" 0 ", " 2 ", " 1 "] and "lora/lora_ewc_dc" in lines["a_mmd"]
    # Their I2I: 61, 73, 73: here 90, 80, 79, wrong twice.
    assert lines["i2i"].split("|")[2:5] == [" 0 ", " 2 ", " 1 "]
    assert results_table(measured).count("\n") == 1 + 3


def test_fronts_are_compared_where_they_learn_equally_well():
    def point(seed, new, forgot, settings="{}"):
        return row("lora_ewc_dc", seed, 0) | {"new_mmd": str(new), "f_mmd": str(forgot), "settings": settings}

    # Seed 0 falls from 0.9 at 1.25 to 0.5 at 1.35, seed 1 from 0.8 at 1.26 to 0.4 at 1.36; at 1.30: 0.70 and 0.64.
    one = [point(0, 1.35, 0.5), point(0, 1.25, 0.9), point(1, 1.26, 0.8), point(1, 1.36, 0.4)]
    other = [point(seed, new, 0.3, '{"fisher_space": "update"}') for seed in (0, 1) for new in (1.2, 1.3)]
    lines = front_table(one + other).splitlines()
    assert lines[0] == "| F_MMD where new is | 1.26 | 1.28 | 1.3 | 1.32 | 1.34 | 1.36 |"
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "lora_ewc_dc",
        *(f"{mean} ± 0.042" for mean in ("0.830", "0.750", "0.670", "0.590", "0.510")),
        "",
    ]
    assert lines[3].split("|")[2:6] == [" 0.300 ± 0.000 "] * 3 + ["  "]


def test_the_encoder_stands_beside_the_figures():
    said = features([{"encoder": "Mean colors"}, {"encoder": "Mean colors"}])
    assert said.startswith("Features: Mean colors; of T2I: EfficientNet-Lite0 carried to MiniLM.")


def test_ours_stand_beside_the_authors():
    measured = [row(recipe, seed, value + seed) for recipe, value in FIGURES.items() for seed in (0, 1)]
    lines = authors_table(measured).splitlines()
    assert [line.split("|")[1].strip(" `") for line in lines[2:]] == ["lora", "lora_ewc", "lora_ewc_dc"]
    # I2I: 90 and 89; T2I: 10 and 11; BwT: -10 and -11.
    assert [cell.strip() for cell in lines[2].split("|")[2:4]] == ["89.5 ± 0.707 (61.3)", "10.5 ± 0.707 (22.97)"]
    assert lines[2].split("|")[7].strip() == "-10.5 ± 0.707 (-118.56)"


FIGURES = {"lora": 10, "lora_ewc": 20, "lora_ewc_dc": 21}


def test_a_job_takes_the_rates_of_its_recipe_and_its_own_changes():
    assert job("custom_diffusion", 0, "tuning", Path(), learning_rate=0.5).settings.learning_rate == 0.5
    assert (
        job("lora", 1, "tuning", Path()).settings.penalty_weight == 0
        and job("joint", 0, "tuning", Path()).recipe == "joint"
    )


def test_growth_lists_every_task(tmp_path):
    logs = {"lora": tmp_path / "a.csv", "lora_ewc": tmp_path / "b.csv"}
    logs["lora"].write_text("1.5,10,10\n1.6,10,20")
    logs["lora_ewc"].write_text("2.0,30,30")
    lines = growth_table(logs).splitlines()
    assert lines[1:] == ["lora,1,1.5,10,10", "lora,2,1.6,10,20", "lora_ewc,1,2.0,30,30"]
    draw_growth(logs, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as figure:
        assert figure.width > 500


def test_parts_of_a_sheet():
    def grid(columns, rows):
        """Each cell a color of its own; the names of rows and columns are the same."""
        cells = [[Image.new("RGB", (8, 8), (4 * column, 60 * row, 200)) for column in columns] for row in rows]
        return image_grid(cells, ["a row"] * len(rows), ["a name"] * len(columns))

    outer = outer_columns(grid(range(50), (0, 1)))
    assert outer.tobytes() == grid((0, 1, 2, 3, 47, 48, 49), (0, 1)).tobytes()
    assert without_first_row(grid(range(4), (0, 1, 2))).tobytes() == grid(range(4), (1, 2)).tobytes()
