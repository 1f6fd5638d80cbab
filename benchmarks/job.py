"""What a run is, and what makes a row of a table the same run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.joint import NAME as JOINT
from trainer.bases.chosen import ChosenBase
from trainer.cli.demo import TINY_SETTINGS
from trainer.recipes import adapter_name
from trainer.settings import TrainSettings
from trainer.sweep.one_run import NORMS, SHEET, TASK_COSTS

# What the settings of a row in results/ are told against.
PLAIN = replace(TINY_SETTINGS, penalty_weight=30.0)


@dataclass(frozen=True)
class Job:
    """A run that the table lacks.

    Attributes:
        recipe: of the settings, or "joint".
        settings: of every task.
        concepts: name of the set.
        folder: where its sheet and its courses are kept.
        name: of these files.
        guidance: classifier-free guidance of the images.
    """

    recipe: str
    settings: TrainSettings
    concepts: str
    folder: Path
    name: str
    guidance: float

    @property
    def adapter(self) -> str:
        """What the run trains."""
        return "lora" if self.recipe == JOINT else adapter_name(self.recipe, self.settings.adapter)

    @property
    def identity(self) -> Mapping[str, str]:
        """See `trainer.sweep.sweep.Job`."""
        return {
            "recipe": self.recipe,
            "adapter": self.adapter,
            "seed": str(self.settings.seed),
            "settings": self.settings_text,
            "guidance": f"{self.guidance:.6g}",
            "base": base_name(),
        }

    @property
    def settings_text(self) -> str:
        """The settings that differ from `PLAIN`, as JSON; the recipe and the seed have columns of their own."""
        plain = asdict(PLAIN)
        own = {name: value for name, value in asdict(self.settings).items() if value != plain[name]}
        return json.dumps({name: value for name, value in own.items() if name not in ("recipe", "seed", "adapter")})

    @property
    def sheet(self) -> Path:
        """Its pictures."""
        return self.folder / f"{self.name}{SHEET}"

    @property
    def norms(self) -> Path:
        """The norm of its adapter at every step, a line for each task."""
        return self.folder / f"{self.name}{NORMS}"

    @property
    def costs(self) -> Path:
        """What every task cost: seconds, bytes for the next task, bytes of the whole sequence."""
        return self.folder / f"{self.name}{TASK_COSTS}"


@cache
def base_name() -> str:
    """Which weights of the embedded base a row was made with."""
    return ChosenBase().name
