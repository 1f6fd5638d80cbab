"""Latents on disk, so that a training that is gone on with, or another one of the same images, need not make them."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk.files import read_tensors, write_tensors
from ..disk.metadata import tensor_hash
from ..disk.sequence import digest
from ..errors import ContinualLoraError

FOLDER, DIGEST = "cache", "digest"


def kept(folder: Path, made_from: Any, make: Callable[[], Tensor], device: torch.device) -> Tensor:  # noqa: ANN401
    """The latents that `make` makes, from the disk if they are there.

    Args:
        folder: holds a file for each different `made_from`; all of it may be deleted at any time.
        made_from: JSON, all that they depend on.
        make: makes them, float32 on `device`.
        device: where they are wanted.
    """
    path = folder / f"{digest(made_from)[:32]}.safetensors"
    if (found := _read(path)) is not None:
        return found.to(device)
    latents = make()
    tensors = {"latents": latents.cpu()}
    write_tensors(path, tensors, {DIGEST: tensor_hash(tensors)})
    return latents


def _read(path: Path) -> Tensor | None:
    """What a file holds; a damaged one is made again like one that is not there."""
    with suppress(ContinualLoraError):
        tensors, metadata = read_tensors(path)
        if tensors.keys() == {"latents"} and metadata.get(DIGEST) == tensor_hash(tensors):
            return tensors["latents"]
    return None


def pixel_digest(images: Tensor) -> str:
    """The sha256 of the bits of images."""
    return hashlib.sha256(f"{list(images.shape)}".encode() + images.contiguous().cpu().numpy().tobytes()).hexdigest()
