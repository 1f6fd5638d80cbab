"""Pictures drawn while a training runs, so that its course can be seen."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from ..concept import Concept
from ..denoiser import Conditioning, Denoiser
from ..disk.files import write_bytes
from ..errors import ContinualLoraError, StorageError
from ..images import to_pil
from ..sampling import sample
from ..settings import TrainSettings
from . import schedule

FOLDER = "samples"
SHOWN_SIDE = 512
# The prompt, the empty prompt, and the shape of a latent, [C, h, w] -> a picture of what the model is now.
Draw = Callable[[Conditioning, Conditioning, torch.Size], Image.Image]


def own_draw(denoiser: Denoiser, settings: TrainSettings) -> Draw:
    """By the trainer's own DDIM sampler, for bases without a host.

    Raises:
        ContinualLoraError: without the VAE there is nothing to show.
    """
    if settings.sample_every and not settings.sample_with_vae:
        raise ContinualLoraError(
            '"sample_with_vae" should be on outside of ComfyUI, whose rough previews take its place.',
            "It is off.",
            "Switch it on, or set sample_every to 0.",
        )

    def draw(prompt: Conditioning, empty: Conditioning, shape: torch.Size) -> Image.Image:
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(settings.seed))
        return to_pil(denoiser.decode_latents(sample(denoiser, prompt, empty, noise.to(denoiser.device)))[0])

    return draw


def sample_prompt(concept: Concept, settings: TrainSettings) -> str:
    """What is drawn: the setting with token and class noun filled in, or the concept's prompt."""
    return concept.filled(settings.sample_prompt) if settings.sample_prompt.strip() else concept.prompt


def is_due(step: int, settings: TrainSettings) -> bool:
    """Whether to draw after a step."""
    return step > 0 and schedule.is_due(step, settings.sample_every, settings.steps)


def file_of(folder: Path, step: int) -> Path:
    """Where the picture after a step is kept."""
    return folder / f"step_{step:06d}.png"


def newest(folder: Path) -> Path | None:
    """The last picture of a task; None where none was drawn."""
    return max((path for path in folder.glob("step_*.png") if path.stem[5:].isdigit()), default=None)


def read(path: Path) -> bytes:
    """A picture on disk as a page gets it, a PNG."""
    with Image.open(path) as picture:
        return png_of(picture)


def png_of(picture: Image.Image) -> bytes:
    """A picture as a page gets it, a PNG of `SHOWN_SIDE` at most."""
    small, written = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    small.save(written, "PNG")
    return written.getvalue()


def step_of(path: Path) -> int:
    """The step after which a picture was drawn."""
    return int(path.stem.removeprefix("step_"))


def keep(path: Path, picture: Image.Image) -> None:
    """Write a PNG; a disk that refuses it is warned of, and does not stop the training."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    try:
        write_bytes(path, png.getvalue())
    except StorageError as error:
        warnings.warn(f"A picture was not kept. {error}", stacklevel=2)
