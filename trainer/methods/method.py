"""The hooks of a method: few, with narrow data, values returned."""

from collections.abc import Iterator

from torch import Tensor

from ..adapters.adapter import Adapter
from ..settings import TrainSettings
from ..task import StepRecord, TrainedTask


class Method:
    """A way not to forget. Each hook does nothing until a method overrides it.

    Order inside a task (Jha et al., arXiv 2410.00700): `begin_task`, then `penalty` at every step, then `consolidate`,
    then `end_task`; `state_dict` is what the next task starts from.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    @property
    def uses(self) -> set[str]:
        """The names of the settings that take effect through this method."""
        return set()

    def prompts_a_pass(self, num_earlier: int) -> int:
        """With how many prompts an image goes through the U-Net at once where a graph is kept.

        Args:
            num_earlier: concepts taught before.
        """
        return 1

    def begin_task(self, adapter: Adapter) -> None:
        """Look at the adapter before the first step."""

    def penalty(self, adapter: Adapter) -> Tensor | None:
        """What is added to the denoising loss, a scalar with its graph; None adds nothing."""
        return None

    def consolidate(self, task: TrainedTask) -> Iterator[StepRecord]:
        """Train on after the task's own steps, under all penalties; yields a record a step."""
        return iter(())

    def end_task(self, task: TrainedTask) -> Iterator[StepRecord]:
        """Update the method's memory of the past from theta as it now is; yields a record a step."""
        return iter(())

    def state_dict(self) -> dict[str, Tensor]:
        """What has to be carried to the next task."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what the last task carried here."""
