"""A training that is not finished, on disk: room for it, its state, and patience with a disk that is full."""

import hashlib
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import ContinualLoraError, StorageError
from ..training.state import TrainState
from .files import read_tensors, set_aside, write_tensors

DIGEST = "digest"
WAITING = "waiting for the disk"  # the phase in which a finished training waits for room
# A finished training waits so long for a disk that refuses it.
WAIT_TRIES, WAIT_SECONDS = 120, 5.0
_MEGABYTE = 1e6
_Result = TypeVar("_Result")


def room_needed(
    state: TrainState, carried: Mapping[str, Tensor], num_pixels: int, *, in_update: bool, again: bool
) -> int:
    """Bytes that a task takes on disk at most, about.

    Args:
        state: as it starts.
        carried: what the methods carried here.
        num_pixels: of all its images together.
        in_update: whether a Fisher weighs the update, not what is trained.
        again: whether a phase after the training changes all of it again.
    """
    trained = sum(parameter.numel() * 4 for parameter in state.parameters.values())
    files = sum(tensor.nbytes for file in state.adapter.files().values() for tensor in file.values())
    with torch.no_grad():
        weighed = 4 * sum(delta.numel() for delta in state.adapter.deltas().values()) if in_update else trained
    # The state with two moments and perhaps an average, once more while it is replaced; a Fisher and an anchor as large
    # as what it weighs; PNGs of three bytes a pixel; the lists.
    methods = max(sum(tensor.nbytes for tensor in carried.values()), 2 * weighed)
    states = (4 if state.average else 3) + (3 if again else 0)
    return 2 * states * trained + files + methods + 3 * num_pixels + 1_000_000


def check_room(root: Path, needed: int) -> None:
    """Raise unless the disk of a folder has room for what a task takes, before it is trained."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"Teaching this concept needs about {needed / _MEGABYTE:.1f} MB on the disk of `{root}`.",
            f"It has {free / _MEGABYTE:.1f} MB left.",
            "Free some, or keep the sequence on another disk; nothing was trained yet.",
        )


def save_partial(path: Path, state: TrainState) -> None:
    """Write the state of a training. A disk that refuses is warned of, and does not stop it: it may have room later."""
    tensors = state.state_dict()
    try:
        write_tensors(path, tensors, {DIGEST: _digest(tensors)})
    except StorageError as error:
        warnings.warn(f"The state at step {state.step} was not saved; the last saved one stays. {error}", stacklevel=2)


def restore_partial(path: Path, state: TrainState) -> None:
    """Go on from a saved state, if there is one. A damaged one is kept under another name, and a warning says so."""
    if not path.exists():
        return
    try:
        tensors, metadata = read_tensors(path)
        wrong = _wrong_with(tensors, metadata, state)
    except ContinualLoraError as error:
        wrong = str(error)
    if wrong:
        kept = set_aside(path)
        warnings.warn(
            f"The training should go on from its state on disk. {wrong} It begins again; the damaged file is now "
            f"`{kept}`, which you may delete.",
            stacklevel=2,
        )
        return
    state.load_state_dict(tensors)


class PhaseFile:
    """See `trainer.task.Kept`.

    Args:
        path: of the file.
        writes: whether this process is the one that writes.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self._path, self._writes = path, writes

    def restore(self, state: TrainState) -> None:
        """See `restore_partial`."""
        restore_partial(self._path, state)

    def save(self, state: TrainState) -> None:
        """See `save_partial`."""
        if self._writes:
            save_partial(self._path, state)


def patiently(write: Callable[[], _Result], on_wait: Callable[[int, int], None]) -> _Result:
    """Write what was trained, if need be when the disk takes it: until then it is nowhere but in memory.

    Args:
        write: tried again while the disk refuses.
        on_wait: told (tries so far, most); may raise to stop.

    Returns:
        What `write` does.
    """
    for number in range(1, WAIT_TRIES):
        try:
            return write()
        except StorageError as error:
            if number == 1:
                minutes = WAIT_TRIES * WAIT_SECONDS / 60
                warnings.warn(f"{error} The training is finished and waits {minutes:.0f} minutes for it.", stacklevel=2)
            on_wait(number, WAIT_TRIES)
            time.sleep(WAIT_SECONDS)
    return write()


def _wrong_with(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], state: TrainState) -> str:
    if metadata.get(DIGEST, _digest(tensors)) != _digest(tensors):  # older versions wrote none
        return "Its numbers are not those that were written."
    lists = ("losses", "penalties", "norms")
    shapes = {f"parameter.{name}": value.shape for name, value in state.parameters.items()}
    shapes |= {f"average.{name}": value.shape for name, value in state.average.items()} | {"step": torch.Size([])}
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            return f"It lacks `{name}` of shape {list(shape)}."
    if any(name not in tensors or tensors[name].shape != (int(tensors["step"]),) for name in lists):
        return "Its lists do not fit its step."
    return ""


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
