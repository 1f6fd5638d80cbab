"""The rows of the paper's table as compositions of an adapter and methods; a new combination needs no new code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .adapters import ADAPTERS
from .errors import ContinualLoraError
from .methods import METHODS
from .methods.method import Method
from .settings import TrainSettings


@dataclass(frozen=True)
class Recipe:
    """A named composition.

    Attributes:
        help: what it does, in a sentence.
        methods: method name -> its own arguments.
        adapter: what is trained; empty leaves it to the setting of this name.
    """

    help: str
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapter: str = ""


EWC, EWC_DC = {"ewc": {"classifier": False}}, {"ewc": {"classifier": True}}
DSC, DSC_DC = {"dsc": {"classifier": False}}, {"dsc": {"classifier": True}}

RECIPES: dict[str, Recipe] = {
    "lora": Recipe("Sequential LoRA: each concept goes on from the last one's LoRA, nothing holds the earlier ones."),
    "lora_ewc": Recipe(
        "LoRA held in place by elastic weight consolidation; the Fisher is that of the denoising loss.", EWC
    ),
    "lora_ewc_dc": Recipe(
        "LoRA held in place by elastic weight consolidation; the Fisher also knows what tells the concepts apart, "
        "from the model's own diffusion-classifier scores.",
        EWC_DC,
    ),
    "lora_dsc": Recipe(
        "LoRA; after each concept it is distilled from itself and from a random earlier LoRA of the sequence.", DSC
    ),
    "lora_dsc_ewc": Recipe("Both: distilled from earlier LoRAs, and held in place by lora_ewc's penalty.", DSC | EWC),
    "lora_dsc_ewc_dc": Recipe(
        "As lora_dsc_ewc, with diffusion-classifier scores in the distillation and in the Fisher.", DSC_DC | EWC_DC
    ),
    "c_lora": Recipe(
        "A fresh LoRA for each concept on top of the frozen sum of the earlier ones, kept off what they changed.",
        {"c_lora": {}},
        adapter="fresh_lora",
    ),
    "merge_and_reinit": Recipe(
        "A fresh LoRA for each concept on top of the frozen sum of the earlier ones, and nothing else.",
        adapter="fresh_lora",
    ),
    "custom_diffusion": Recipe(
        "Custom Diffusion: the whole keys and values are trained and carried on; large files.", adapter="full"
    ),
    "custom_diffusion_ewc": Recipe(
        "Custom Diffusion held in place by elastic weight consolidation.", EWC, adapter="full"
    ),
    "textual_inversion": Recipe(
        "Textual Inversion: only the token's word vector is learned, the model stays as it is: nothing is forgotten, "
        "and little is learned.",
        adapter="token_only",
    ),
}


def recipe_of(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ContinualLoraError: there is none.
    """
    if name not in RECIPES:
        raise ContinualLoraError(
            f'"recipe" should be one of {", ".join(RECIPES)}.', f"It is `{name}`.", "Choose one of them."
        )
    return RECIPES[name]


def build_methods(settings: TrainSettings) -> dict[str, Method]:
    """The methods of the recipe that the settings name.

    Raises:
        ContinualLoraError: there is no such recipe.
    """
    return {name: METHODS[name](settings, **args) for name, args in recipe_of(settings.recipe).methods.items()}


def adapter_name(recipe: str, setting: str) -> str:
    """Which adapter a recipe trains, given the setting "adapter".

    Raises:
        ContinualLoraError: there is no such recipe.
    """
    return recipe_of(recipe).adapter or setting


def settings_by_recipe() -> dict[str, list[str]]:
    """Setting -> the recipes in which it takes effect, for those settings that some method or adapter uses.

    Of recipes that leave the adapter to a setting, it is what the default one uses.
    """
    users: dict[str, list[str]] = {}
    for name, recipe in RECIPES.items():
        methods = build_methods(TrainSettings(recipe=name)).values()
        used = set().union(*(method.uses for method in methods))
        used |= ADAPTERS[adapter_name(name, TrainSettings().adapter)].uses
        used |= {"adapter"} if not recipe.adapter else set()
        for setting in used:
            users.setdefault(setting, []).append(name)
    return users
