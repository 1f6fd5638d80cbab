"""Pictures drawn while a training runs, so that its course can be seen."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from . import schedule
from .concept import Concept
from .denoiser import Conditioning, Denoiser
from .errors import ContinualLoraError, StorageError
from .files import write_bytes
from .images import to_pil
from .sampling import sample
from .settings import TrainSettings

FOLDER = "samples"
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


def keep(path: Path, picture: Image.Image) -> None:
    """Write a PNG; a disk that refuses it is warned of, and does not stop the training."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    try:
        write_bytes(path, png.getvalue())
    except StorageError as error:
        warnings.warn(f"A picture was not kept. {error}", stacklevel=2)
