"""Which runs make which table. Settings are chosen on the tuning sequence and never on the reported one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.job import Job
from benchmarks.joint import NAME as JOINT
from trainer.cli.demo import TINY_SETTINGS
from trainer.recipes import RECIPES

SEEDS = (0, 1, 2)
# Of those in `guidances`, the one at which the tuning concepts were drawn best (results/tuning.csv, new_mmd).
GUIDANCE = 2.0
# Strengths of the penalty; each kind of adapter and of penalty moves on a scale of its own.
STRENGTHS = (3.0, 10.0, 30.0, 100.0, 300.0)
STRENGTHS_OF: dict[str, tuple[float, ...]] = {
    "c_lora": (0.1, 1.0, 10.0, 100.0, 1000.0),
    "custom_diffusion_ewc": (30.0, 100.0, 300.0, 1000.0, 10_000.0),
}
VERA_STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
VERA_RECIPES = ("lora", "lora_ewc", "lora_ewc_dc", "lora_dsc_ewc_dc")
PENALTY_RECIPES = tuple(name for name, recipe in RECIPES.items() if {"ewc", "c_lora"} & recipe.methods.keys())
# Learning rates: of those in `tuned_rates`, what learned the tuning concepts best (results/tuning.csv, new_mmd); full
# keys and values do as well, to 0.001, at twice the rate, the end of the grid.
RATES: dict[str, dict[str, float]] = {
    "custom_diffusion": {"learning_rate": 8e-3},
    "custom_diffusion_ewc": {"learning_rate": 8e-3},
    "textual_inversion": {"token_learning_rate": 0.25},
    "vera": {"learning_rate": 0.25},
}
# Strengths: the lowest A_MMD on the tuning concepts of those in `tuned_strengths`, whatever else they do there.
STRENGTH: dict[str, float] = {
    "lora_ewc": 10.0,
    "lora_ewc_dc": 10.0,
    "lora_dsc_ewc": 10.0,
    "lora_dsc_ewc_dc": 10.0,
    "c_lora": 1000.0,
    "custom_diffusion_ewc": 10_000.0,
    "vera lora_ewc": 0.1,
    "vera lora_ewc_dc": 0.1,
    "vera lora_dsc_ewc_dc": 0.03,
}


def job(
    recipe: str,
    seed: int,
    concepts: str,
    folder: Path,
    adapter: str = "lora",
    guidance: float = GUIDANCE,
    **changes: Any,  # noqa: ANN401
) -> Job:
    """A run with the chosen settings of its recipe and adapter, but for `changes`."""
    rates = RATES.get("vera" if adapter == "vera" else recipe, {})
    strength = {"penalty_weight": STRENGTH.get(f"vera {recipe}" if adapter == "vera" else recipe, 0.0)}
    trained = "lora" if recipe == JOINT else recipe
    settings = replace(
        TINY_SETTINGS, **{"recipe": trained, "seed": seed, "adapter": adapter, **strength, **rates, **changes}
    )
    name = "-".join([recipe, adapter, str(seed), str(guidance), *(f"{k}={v}" for k, v in changes.items())]).replace(
        ".", "_"
    )
    return Job(recipe, settings, concepts, folder, name, guidance)


def quick(folder: Path) -> Iterator[Job]:
    """Three recipes: nothing against forgetting, EWC, EWC that knows the classes."""
    for seed in SEEDS:
        for recipe in ("lora", "lora_ewc", "lora_ewc_dc"):
            yield job(recipe, seed, "reported", folder)


def table(folder: Path) -> Iterator[Job]:
    """Every recipe, the reference of all concepts at once, and VeRA."""
    for seed in SEEDS:
        for recipe in (*RECIPES, JOINT):
            yield job(recipe, seed, "reported", folder)
    for seed in SEEDS:
        for recipe in VERA_RECIPES:
            yield job(recipe, seed, "reported", folder, adapter="vera")


def front(folder: Path) -> Iterator[Job]:
    """Every penalty method at every strength."""
    for seed in SEEDS:
        for recipe in PENALTY_RECIPES:
            for weight in STRENGTHS_OF.get(recipe, STRENGTHS):
                yield job(recipe, seed, "reported", folder, penalty_weight=weight)
        for weight in STRENGTHS:
            yield job("lora_ewc_dc", seed, "reported", folder, penalty_weight=weight, fisher_space="update")


def photos(folder: Path) -> Iterator[Job]:
    """Every recipe on eight photographed things, to see whether it was the drawings."""
    for seed in SEEDS:
        for recipe in (*RECIPES, JOINT):
            yield job(recipe, seed, "photos", folder)


def long(folder: Path) -> Iterator[Job]:
    """Fifty concepts."""
    for recipe in ("lora", "c_lora", "lora_ewc_dc", "lora_dsc_ewc_dc"):
        yield job(recipe, 0, "long", folder)


def guidances(folder: Path) -> Iterator[Job]:
    """How strongly the prompt is followed in drawing; training does not know of it."""
    for guidance in (1.0, 1.5, 2.0, 3.0, 5.0):
        yield job("lora_ewc", 0, "tuning", folder, guidance=guidance, penalty_weight=10.0)


def tuned_rates(folder: Path) -> Iterator[Job]:
    """Learning rates of what trains something else than a LoRA."""
    for rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2):
        yield job("custom_diffusion", 0, "tuning", folder, learning_rate=rate)
    for rate in (4e-3, 1.6e-2, 6.4e-2, 0.25, 1.0):
        yield job("textual_inversion", 0, "tuning", folder, token_learning_rate=rate)
    for rate in (1.6e-2, 6.4e-2, 0.25, 1.0):
        yield job("lora", 0, "tuning", folder, adapter="vera", learning_rate=rate)


def tuned_strengths(folder: Path) -> Iterator[Job]:
    """Strengths of every penalty method, and what they are measured against."""
    for recipe in ("lora", "lora_dsc", "merge_and_reinit"):
        yield job(recipe, 0, "tuning", folder)
    for recipe in PENALTY_RECIPES:
        for weight in STRENGTHS_OF.get(recipe, STRENGTHS):
            yield job(recipe, 0, "tuning", folder, penalty_weight=weight)
    for weight in STRENGTHS:
        yield job("lora_ewc_dc", 0, "tuning", folder, penalty_weight=weight, fisher_space="update")
    for recipe in VERA_RECIPES[1:]:
        for weight in VERA_STRENGTHS:
            yield job(recipe, 0, "tuning", folder, adapter="vera", penalty_weight=weight)


def tuned_scores(folder: Path) -> Iterator[Job]:
    """Whether the temperature of the scores or the draws keep DC from helping the Fisher; how few draws would do."""
    for seed in SEEDS:
        for recipe in ("lora_ewc", "lora_ewc_dc"):
            for draws in (48, 96, 200, 800):
                yield job(recipe, seed, "tuning", folder, penalty_weight=10.0, fisher_draws=draws)
        for temperature in (0.01, 0.1, 1.0):  # calibrated it is 0.03 to 0.07
            yield job("lora_ewc_dc", seed, "tuning", folder, penalty_weight=10.0, temperature=temperature)


@dataclass(frozen=True)
class Plan:
    """Runs on one set of concepts.

    Attributes:
        jobs: the runs, given the folder to work in.
        table: name of the table that their rows are added to.
        also: tables in which a row is looked for as well: a run of two plans is made once.
    """

    jobs: Callable[[Path], Iterator[Job]]
    table: str
    also: tuple[str, ...] = ()


PLANS: dict[str, Plan] = {
    "quick": Plan(quick, "quick"),
    "table": Plan(table, "table"),
    "front": Plan(front, "front", also=("table",)),
    "photos": Plan(photos, "photos"),
    "long": Plan(long, "long"),
    "guidance": Plan(guidances, "tuning"),
    "rates": Plan(tuned_rates, "tuning"),
    "strengths": Plan(tuned_strengths, "tuning"),
    "scores": Plan(tuned_scores, "tuning"),
}
