"""One writer at a time in a folder.

The operating system holds the lock, on a file that stays: it ends with the process, however that ends, and on network
drives the server keeps it for all machines. What the file says is only for the eye. Readers need no lock, since every
file they read is replaced whole.
"""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from ..errors import BusyError, StorageError
from .files import storing

LOCK = "writing.lock"
# Windows keeps others from reading what is locked, so that is one byte far behind the text.
_FAR = 1 << 30
TURN_PAUSE = 0.1
# Two prompts in one process: on network drives the system's lock belongs to the process, not to the open file.
_held: set[tuple[int, int]] = set()
_guard = threading.Lock()

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _unlock(handle: int) -> None:
        os.lseek(handle, _FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


@contextmanager
def writing(folder: Path, doing: str) -> Iterator[None]:
    """Be the only one who writes a folder, which is made if it is not there.

    Args:
        folder: what is written.
        doing: what for, as in "process 7 is teaching <fox>".

    Raises:
        BusyError: another run writes it now; its place, process and start are named.
        StorageError: the folder cannot be written, or its drive cannot lock.
    """
    path = folder / LOCK
    with storing(path):
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
        key = (path.stat().st_dev, path.stat().st_ino)
    with _guard:  # before the file is opened: on a network drive closing it again would end the other one's lock
        if key in _held:
            raise _busy(folder)
        _held.add(key)
    try:
        with _locked(folder, doing):
            yield
    finally:
        with _guard:
            _held.discard(key)


@contextmanager
def writing_in_turn(folder: Path, doing: str, patience: float) -> Iterator[None]:
    """As `writing`, but wait for the other one.

    Args:
        folder: what is written.
        doing: what for.
        patience: the most seconds to wait.

    Raises:
        BusyError: the other one is still at it.
    """
    deadline = time.monotonic() + patience
    while True:
        with ExitStack() as stack:
            try:
                stack.enter_context(writing(folder, doing))
            except BusyError:
                if time.monotonic() > deadline:
                    raise
            else:
                yield
                return
        time.sleep(TURN_PAUSE)


@contextmanager
def _locked(folder: Path, doing: str) -> Iterator[None]:
    path = folder / LOCK
    with storing(path):
        handle = os.open(path, os.O_RDWR)
    try:
        try:
            _lock(handle)
        except (BlockingIOError, PermissionError) as error:
            raise _busy(folder) from error
        except OSError as error:
            raise StorageError(
                f"`{folder}` should be on a drive that can lock files.",
                f"{error.strerror or error}.",
                "Mount the drive with file locks, or choose a folder on another one.",
            ) from error
        try:
            holder = {"doing": doing, "process": os.getpid(), "machine": platform.node()}
            holder["since"] = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
            with storing(path):
                _say(handle, json.dumps(holder))
            yield
        finally:
            try:
                os.ftruncate(handle, 0)
            finally:
                _unlock(handle)
    finally:
        os.close(handle)


def _say(handle: int, text: str) -> None:
    """Replace what a dead process may have left."""
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, text.encode())


def _busy(folder: Path) -> BusyError:
    came = "Another run is writing it now."
    try:
        holder = json.loads((folder / LOCK).read_text(encoding="utf-8"))
        process = "This process" if _is_own(holder) else f"Process {holder['process']} on `{holder['machine']}`"
        came = f"{process} is {holder['doing']} in it since {holder['since']}."
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the other one has not written yet who it is
    return BusyError(
        f'"{folder.name}" should be written by one run at a time.',
        came,
        "Wait until it is done or stop it, then run this again; or use another sequence or folder.",
    )


def _is_own(holder: dict[str, object]) -> bool:
    return holder["process"] == os.getpid() and holder["machine"] == platform.node()
