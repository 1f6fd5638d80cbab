"""Widgets out of the trainer's settings, so that each setting is said once."""

from dataclasses import Field, fields
from typing import Any

from comfy_api.v0_0_2 import io

from ..trainer.recipes import RECIPES, settings_by_recipe
from ..trainer.settings import TrainSettings

MOST_EXCEPTIONS = 3  # where fewer recipes do without a setting, it names those


def setting_inputs(advanced: bool) -> list[Any]:
    """One widget for each basic or each advanced setting, with its default, limits and help."""
    return [_input(item) for item in fields(TrainSettings) if item.metadata.get("advanced", False) == advanced]


def tooltip_of(item: Field[Any]) -> str:
    """A setting's help, and where it takes effect if that is not everywhere."""
    text: str = item.metadata["help"]
    if item.name == "recipe":
        return "\n".join([text, *(f"{name}: {recipe.help}" for name, recipe in RECIPES.items())])
    users = settings_by_recipe().get(item.name, list(RECIPES))
    others = [name for name in RECIPES if name not in users]
    if len(others) > MOST_EXCEPTIONS:
        return f"{text} Takes effect in {', '.join(users)}."
    return f"{text} Has no effect in {', '.join(others)}." if others else text


def _input(item: Field[Any]) -> Any:
    limits, common = item.metadata, {"default": item.default, "tooltip": tooltip_of(item)}
    if item.name == "recipe":
        return io.Combo.Input("recipe", options=list(RECIPES), **common)
    if "choices" in limits:
        return io.Combo.Input(item.name, options=list(limits["choices"]), **common)
    if isinstance(item.default, bool):
        return io.Boolean.Input(item.name, **common)
    if isinstance(item.default, str):
        return io.String.Input(item.name, **common)
    numbers = {"min": limits["minimum"], "max": limits["maximum"], **common}
    if isinstance(item.default, int):
        # Else the page would change the seed after each run, and a cancelled training could not be gone on with.
        return io.Int.Input(item.name, control_after_generate=False, **numbers)
    return io.Float.Input(item.name, step=limits["step"], round=False, **numbers)
