"""What the nodes ask of ComfyUI: folders, progress, the stop button."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy import model_management
from PIL import Image

from ..trainer.bases.comfyui.memory import lent_models
from ..trainer.errors import ContinualLoraError
from ..trainer.sequence import MANIFEST


def sequences_folder() -> Path:
    """Where sequences live: output/continual_lora."""
    return Path(folder_paths.get_output_directory()) / "continual_lora"


def sequence_names() -> list[str]:
    """The sequences on disk, by name."""
    return sorted(path.parent.name for path in sequences_folder().glob(f"*/{MANIFEST}"))


def sequence_root(name: str) -> Path:
    """The folder of a sequence.

    Raises:
        ContinualLoraError: a name that is not a plain file name.
    """
    if not name.strip() or Path(name).name != name or name in (".", ".."):
        raise ContinualLoraError(
            'The name of a sequence should be a plain file name, such as "my pets".', f"It is `{name}`.", "Change it."
        )
    return sequences_folder() / name


def lora_names() -> list[str]:
    """The LoRA files that the host lists; only those that hold no code."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]


def lora_path(name: str) -> Path:
    """The file of a LoRA that the host lists."""
    return Path(folder_paths.get_full_path_or_raise("loras", name))


@contextmanager
def training_mode() -> Iterator[None]:
    """Nodes run under inference mode; autograd needs ordinary tensors. The models are lent for as long as it lasts."""
    with lent_models(), torch.inference_mode(False), torch.enable_grad():
        yield


class Progress:
    """The node's progress bar; every call also obeys the stop button."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._of = ("", 0)

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show `done` of `total`; a new phase starts the bar again."""
        model_management.throw_exception_if_processing_interrupted()
        if (phase, total) != self._of:
            self._bar, self._of = comfy.utils.ProgressBar(total), (phase, total)
        self._bar.update_absolute(done, total)


def unused_path(folder: Path, stem: str, content: Callable[[Path], bool]) -> Path:
    """`stem.safetensors`, or with a number behind it where a file of other content has the name already.

    Args:
        folder: made if it is not there.
        stem: the wished name.
        content: tells of an existing file whether it is what would be written anyway.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, path = 1, folder / f"{stem}.safetensors"
    while path.exists() and not content(path):
        number += 1
        path = folder / f"{stem}_{number}.safetensors"
    return path


def image_batch(*pictures: Image.Image) -> torch.Tensor:
    """Pictures as an IMAGE batch, [B, H, W, 3] in 0..1, on white where they differ in size."""
    height, width = max(p.height for p in pictures), max(p.width for p in pictures)
    batch = torch.ones(len(pictures), height, width, 3)
    for row, picture in zip(batch, pictures, strict=True):
        flat = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        row[: picture.height, : picture.width] = flat.view(picture.height, picture.width, 3) / 255
    return batch
