"""A device without room for a training: which errors say so, half the images a pass, and what to tell the user."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from ..errors import ContinualLoraError
from ..settings import TrainSettings
from ..work import Work

# What the allocators say that raise no error of a kind of its own: Apple's, CUDA's in hindsight, its libraries', the
# CPU's on Linux and on Windows, DirectML's.
_WORDS = ("out of memory", "alloc_failed", "can't allocate memory", "not enough memory", "not enough gpu video memory")

_Result = TypeVar("_Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


class Halving:
    """Into how many passes the images of a step are put: one, and two from the first time that one does not fit.

    Args:
        settings: `batch_size` counts: a single image cannot be halved.
        work: nor can a pass of which other processes make their part.
    """

    def __init__(self, settings: TrainSettings, work: Work) -> None:
        self._batch_size, self._work, self._count = settings.batch_size, work, 1

    def run(self, work: Callable[[int], _Result], what: str) -> _Result:
        """Do the work, and again in halves where it does not fit.

        Args:
            work: given how many passes; may be begun a second time.
            what: it is, for the warning.
        """
        try:
            return work(self._count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._batch_size == 1 or self._count > 1 or self._work.shares:
                raise
        self._count = 2
        warnings.warn(
            f"{what} did not fit into memory with {self._batch_size} images a pass. From here on a pass has half as "
            "many; the images of a step stay the same.",
            stacklevel=3,
        )
        return work(self._count)


@contextmanager
def told_of_no_room(settings: TrainSettings) -> Iterator[None]:
    """Say in three facts what in the block ran out of memory.

    Raises:
        ContinualLoraError: in the place of the device's own error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise no_room(settings) from error
        raise


def no_room(settings: TrainSettings) -> ContinualLoraError:
    """The error, with what makes a training smaller and is not chosen yet."""
    free = {"gradient_checkpointing": settings.gradient_checkpointing, "low_memory": settings.low_memory}
    switches = [f"switch {name} on" for name, chosen in free.items() if not chosen]
    same = f"{' and '.join(switches)}: the training then goes on where it stopped; or, " if switches else ""
    several = settings.batch_size > 1
    batch = "set batch_size to 1 and gradient_accumulation to what batch_size was, or " if several else ""
    return ContinualLoraError(
        "The device should have room for a pass of the U-Net and for what training keeps of it.",
        f"It ran out of memory with {settings.batch_size} images a pass"
        + (" (and, wherever it trains, with half as many)." if several else "."),
        f"Close what else uses the device; {same}on an options node for this training alone, {batch}lower resolution, "
        "which begins the concept anew.",
    )
