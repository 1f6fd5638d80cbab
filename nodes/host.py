"""What the nodes ask of ComfyUI: folders, progress, the stop button, messages to the page."""

import sys
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
from ..trainer.disk.files import storing
from ..trainer.disk.manifest import MANIFEST
from ..trainer.disk.names import check_file_name, shown
from ..trainer.errors import ContinualLoraError
from ..trainer.settings import check_kind, check_limits


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
    return sequences_folder() / check_file_name(name, "sequence_name")


def lora_names() -> list[str]:
    """The LoRA files that the host lists; only those that hold no code."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]


def lora_path(name: str) -> Path:
    """The file of a LoRA that the host lists.

    Raises:
        ContinualLoraError: it lists none of this name.
    """
    path = folder_paths.get_full_path("loras", name) if name in lora_names() else None
    if path is None:
        raise ContinualLoraError(
            '"existing_lora" should be a .safetensors file in the folder of LoRAs.',
            f"There is no {shown(name)}.",
            "Press R in ComfyUI and choose another.",
        )
    return Path(path)


def check_widgets(node: Any, **values: Any) -> None:
    """Hold values to what the node's widgets allow; the host does not, where a link brings them.

    Args:
        node: its schema has the limits, the steps and the choices.
        values: by the input's name.

    Raises:
        ContinualLoraError: names the input, what it takes, and the value.
    """
    for item in node.define_schema().inputs:
        if item.id not in values:
            continue
        value, options = values[item.id], getattr(item, "options", None)
        if options:
            check_limits(item.id, value, {"choices": options})
            continue
        check_kind(item.id, value, item.default)
        check_limits(item.id, value, {"minimum": item.min, "maximum": item.max})
        if isinstance(item.default, int) and value % (item.step or 1):
            raise ContinualLoraError(
                f'"{item.id}" should be a multiple of {item.step}.', f"It is {value}.", "Round it to one."
            )


@contextmanager
def training_mode() -> Iterator[None]:
    """Nodes run under inference mode; autograd needs ordinary tensors, and a newer host's kernels with a gradient.

    The models are lent for as long as it lasts.
    """
    before = getattr(model_management, "in_training", False)
    model_management.in_training = True
    try:
        with lent_models(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        model_management.in_training = before


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


def tell_pages(event: str, data: dict[str, Any]) -> None:
    """Send an event to every page that is open; nothing where the nodes run without a server."""
    module = sys.modules.get("server")  # in a script it is not loaded, and loading it would take all of the host
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is not None:
        server.send_sync(event, data)


def unused_path(folder: Path, stem: str, content: Callable[[Path], bool]) -> Path:
    """`stem.safetensors`, or with a number behind it where a file of other content has the name already.

    Args:
        folder: made if it is not there.
        stem: the wished name.
        content: tells of an existing file whether it is what would be written anyway.
    """
    with storing(folder):
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
