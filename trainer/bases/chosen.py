"""The base model of a command: the embedded one, or a checkpoint through ComfyUI."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..denoiser import Denoiser
from ..disk.files import sha256_of
from ..errors import ContinualLoraError
from ..evaluation.pictures import Artist, Drawing, own_artist
from .tiny.base import TinyBase
from .tiny.weights import fingerprint, weights_folder


@dataclass(frozen=True)
class ChosenBase:
    """The embedded base, unless a checkpoint is named.

    Attributes:
        checkpoint: a Stable Diffusion checkpoint.
        comfyui: a ComfyUI checkout that loads it.
    """

    checkpoint: Path | None = None
    comfyui: Path | None = None

    @property
    def name(self) -> str:
        """What tells its files from others: the first 12 hex digits of a sha256."""
        return (fingerprint(weights_folder()) if self.checkpoint is None else sha256_of(self.checkpoint))[:12]

    def open(self) -> Denoiser:
        """A fresh view."""
        if self.checkpoint is None:
            return TinyBase()
        loaded = self._loaded(self.checkpoint)
        from .comfyui.base import ComfyBase

        return ComfyBase(*loaded)

    def with_artist(self, drawing: Drawing) -> tuple[Callable[[], Denoiser], Artist]:
        """What opens a fresh view, and who draws with it: the host, or on the embedded base ourselves."""
        count, seed, steps, guidance = drawing.count, drawing.seed, drawing.steps, drawing.guidance
        if self.checkpoint is None:
            return self.open, own_artist(self.open, count, seed, steps, guidance, drawing.size)
        loaded = self._loaded(self.checkpoint)
        from .comfyui.sampling import host_artist

        size = drawing.size or self.open().resolution
        artist = host_artist(*loaded, count, seed, steps, guidance, drawing.sampler, drawing.scheduler, size)
        return self.open, artist

    def _loaded(self, checkpoint: Path) -> tuple[object, object, object]:
        if self.comfyui is None:
            raise ContinualLoraError(
                'A checkpoint is loaded by ComfyUI, so "--checkpoint" goes with "--comfyui".',
                "Only the checkpoint is given.",
                "Name the folder of a ComfyUI checkout.",
            )
        return _load(self.comfyui, checkpoint)


@lru_cache(maxsize=1)
def _load(comfyui: Path, checkpoint: Path) -> tuple[object, object, object]:
    """MODEL, CLIP and VAE, once for all views of this process."""
    from .comfyui.checkpoint import load_checkpoint

    return load_checkpoint(comfyui, checkpoint)
