"""Files that go to other machines once: into a store that all can reach, and from there into a folder on each."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..disk.files import rename, sha256_of, sync_folder, write_bytes
from ..disk.lock import writing_in_turn
from .engines import Input

Bytes = NDArray[np.uint8]
PATIENCE = 3600.0  # seconds, until another run of the machine has unpacked a large file


@dataclass(frozen=True)
class Parcel:
    """An input on its way.

    Attributes:
        digest: of the names and the contents; 64 hex digits.
        names: of the files below its root; of a file that is an input itself, its own.
        contents: for each file what the store gave for it.
        is_folder: whether the input is a folder.
    """

    digest: str
    names: tuple[str, ...]
    contents: tuple[Any, ...]
    is_folder: bool


def digest_of(source: Input) -> str:
    """sha256 over the names and the contents of an input's files, 64 hex digits."""
    total = hashlib.sha256()
    for name, file in sorted(zip(_names(source), source.files, strict=True)):
        total.update(f"{len(name.encode())} {name} {sha256_of(file)}\n".encode())
    return total.hexdigest()


def pack(source: Input, put: Callable[[Bytes], Any]) -> Parcel:
    """Read an input's files, once.

    Args:
        source: the files.
        put: keeps a content in the store; what it returns stands for it.
    """
    contents = tuple(put(_read(file)) for file in source.files)
    return Parcel(digest_of(source), tuple(_names(source)), contents, source.files != (source.root,))


def unpack(parcel: Parcel, cache: Path, get: Callable[[Any], Bytes]) -> Input:
    """The input in a folder of this machine, named by its digest; what is there is not fetched again.

    Args:
        parcel: what is wanted.
        cache: holds these folders; several runs may want the same at the same time.
        get: a content out of the store.
    """
    folder = cache / parcel.digest
    if not folder.exists():
        with writing_in_turn(cache, "unpacking", PATIENCE):
            if not folder.exists():
                _write(parcel, folder, get)
    files = tuple(folder / name for name in parcel.names)
    return Input(folder if parcel.is_folder else files[0], files)


def _write(parcel: Parcel, folder: Path, get: Callable[[Any], Bytes]) -> None:
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    for name, content in zip(parcel.names, parcel.contents, strict=True):
        write_bytes(new / name, get(content).data)
    rename(new, folder)
    sync_folder(folder.parent)


def _names(source: Input) -> list[str]:
    top = source.root.parent if source.files == (source.root,) else source.root
    return [file.relative_to(top).as_posix() for file in source.files]


def _read(file: Path) -> Bytes:
    """A view of the file, which the store copies; an empty one cannot be mapped."""
    if not file.stat().st_size:
        return np.zeros(0, np.uint8)
    return np.asarray(np.memmap(file, np.uint8, "r"))
