"""Files that are either the old one or the new one, never half of one."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from .images import to_pil


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside `path`, flush to the disk, then rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write safetensors; the same tensors and metadata give the same bytes."""
    content = save({name: value.contiguous() for name, value in sorted(tensors.items())})
    write_bytes(path, _with_metadata(content, metadata) if metadata else content)


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
        finally:
            os.close(handle)
