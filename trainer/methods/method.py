"""The hooks of a method: few, with narrow data, values returned."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from ..settings import TrainSettings
from ..task import StepRecord, TrainedTask


class Method:
    """A way not to forget. Each hook does nothing until a method overrides it.

    Order inside a task (Jha et al., arXiv 2410.00700): `begin_task`, then `penalty` at every step, then `consolidate`,
    then `end_task`; `state_dict` is what the next task starts from.
    """

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    def begin_task(self, parameters: Mapping[str, Tensor]) -> None:
        """Look at theta before the first step."""

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """What is added to the denoising loss, a scalar with its graph; None adds nothing."""
        return None

    def consolidate(self, task: TrainedTask) -> Iterator[StepRecord]:
        """Train on after the task's own steps; yields a record a step."""
        return iter(())

    def end_task(self, task: TrainedTask) -> Iterator[StepRecord]:
        """Update the method's memory of the past from theta as it now is; yields a record a step."""
        return iter(())

    def state_dict(self) -> dict[str, Tensor]:
        """What has to be carried to the next task."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what the last task carried here."""
