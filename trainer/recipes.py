"""The rows of the paper's table as compositions of methods; a new combination needs no new code."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """

    help: str
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "lora": Recipe("Sequential LoRA: each concept goes on from the last one's LoRA, nothing holds the earlier ones."),
    "lora_ewc": Recipe(
        "LoRA held in place by elastic weight consolidation; the Fisher is that of the denoising loss.",
        {"ewc": {"classifier": False}},
    ),
    "lora_ewc_dc": Recipe(
        "LoRA held in place by elastic weight consolidation; the Fisher also knows what tells the concepts apart, "
        "from the model's own diffusion-classifier scores.",
        {"ewc": {"classifier": True}},
    ),
}


def build_methods(settings: TrainSettings) -> dict[str, Method]:
    """The methods of the recipe that the settings name.

    Raises:
        ContinualLoraError: there is no such recipe.
    """
    if settings.recipe not in RECIPES:
        raise ContinualLoraError(
            f'"recipe" should be one of {", ".join(RECIPES)}.', f"It is `{settings.recipe}`.", "Choose one of them."
        )
    return {name: METHODS[name](settings, **args) for name, args in RECIPES[settings.recipe].methods.items()}
