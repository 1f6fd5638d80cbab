"""Every step's figures as TensorBoard reads them: `tensorboard --logdir <sequence>/tensorboard`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ContinualLoraError
from ..task import StepRecord
from .prior import PHASE as PRIOR

FOLDER = "tensorboard"


def writer_class() -> Any:  # noqa: ANN401
    """What writes event files.

    Raises:
        ContinualLoraError: the package is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ContinualLoraError(
            'The setting tensorboard should find the package "tensorboard".',
            f"It cannot be imported: {error}.",
            "Run `python -m pip install tensorboard` in ComfyUI's Python, or switch the setting off.",
        ) from error
    return SummaryWriter


@contextmanager
def logged(on_step: Callable[[StepRecord], None], folder: Path) -> Iterator[Callable[[StepRecord], None]]:
    """`on_step`, with loss, penalty and further figures of each step written below `folder` first.

    One curve for each phase and figure, such as "train/loss". A training that is gone on with hides what was written
    after the step that it goes on from.
    """
    writers: list[Any] = []

    def report(record: StepRecord) -> None:
        if record.phase != PRIOR:  # it only draws
            if not writers:
                first = record.step if record.phase == "train" else None
                writers.append(writer_class()(str(folder), purge_step=first))
            for name, value in {"loss": record.loss, "penalty": record.penalty, **record.values}.items():
                writers[0].add_scalar(f"{record.phase}/{name}", value, record.step)
        on_step(record)

    try:
        yield report
    finally:
        for writer in writers:
            writer.close()
