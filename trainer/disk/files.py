"""Files that are either the old one or the new one, never half of one; what is damaged is named and kept."""

import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ContinualLoraError, StorageError
from ..images import to_pil
from .names import shown

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
READ_AGAIN = "Put it back from a copy, or choose another file."
# On Windows a file cannot be replaced while a virus scanner or a reader holds it open, which is over in a moment.
RENAME_TRIES, RENAME_PAUSE = 5, 0.1


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Say in three facts what the disk refuses.

    Args:
        path: what is written.

    Raises:
        StorageError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        where = f"`{path.parent}`"
        if error.errno in FULL:
            do = f"Free space on the disk of {where}, then run the same again; what is on disk stays usable."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            do = f"Allow writing in {where} (permissions, write protection, another program), or choose another folder."
        else:
            do = f"Check the disk of {where} and the name, then run the same again."
        raise StorageError(f"`{path.name}` should be written to {where}.", f"{error.strerror or error}.", do) from error


def write_bytes(path: Path, content: bytes | memoryview, beside: Path | None = None) -> None:
    """Write beside `path`, flush to the disk, then rename over it.

    Args:
        path: the file.
        content: all of it.
        beside: where it is written first, in the same folder; `<name>.tmp` unless told.

    Raises:
        StorageError: the disk refused; `path` is what it was, and nothing is left beside it.
    """
    temporary = beside or path.with_name(path.name + ".tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            rename(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)  # on a full disk it would keep the room that is missing
            raise
        sync_folder(path.parent)


def inside(path: Path, root: Path) -> Path:
    """Where a path really leads, links followed.

    Args:
        path: need not exist.
        root: the folder that it has to stay in.

    Raises:
        ContinualLoraError: it leads out of `root`.
    """
    real, top = (Path(os.path.realpath(item)) for item in (path, root))
    if top not in real.parents:
        raise ContinualLoraError(
            f"{shown(path.name)} should be inside the folder {shown(root.name)}.",
            "It leads out of it.",
            "Put the file itself there, not a link to it.",
        )
    return real


def rename(path: Path, target: Path) -> None:
    """Rename over what is there, with patience for who holds it open."""
    for left in reversed(range(RENAME_TRIES)):
        try:
            path.replace(target)
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(RENAME_PAUSE)


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to the first free `<name>.damaged`, `<name>.damaged-2`, ...; its new place."""
    number, kept = 1, path.with_name(f"{path.name}.damaged")
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    with storing(kept):
        path.rename(kept)
    return kept


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors; the same tensors and metadata give the same bytes."""
    content = save({name: value.contiguous() for name, value in sorted(tensors.items())})
    write_bytes(path, _with_metadata(content, metadata) if metadata else content)


def read_tensors(path: Path, do: str = READ_AGAIN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Args:
        path: the file.
        do: what the user may do if it cannot be read.

    Raises:
        ContinualLoraError: it is not there, or it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable itself)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ContinualLoraError(
            f"`{path}` should be a whole safetensors file.", f"It cannot be read: {error}.", do
        ) from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def _with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Safetensors with metadata in the order of its names; the library itself writes them in a random order."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(content[8:end])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[end:]


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write readable JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_images(folder: Path, images: Tensor) -> None:
    """Write [N, 3, H, W] in 0..1 as 001.png, 002.png, ..."""
    for number, image in enumerate(images, start=1):
        png = io.BytesIO()
        to_pil(image).save(png, "PNG")
        write_bytes(folder / f"{number:03d}.png", png.getvalue())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; Windows has no such call and needs none."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives cannot
                raise
        finally:
            os.close(handle)
