"""The weight files of the embedded base: where they lie, how they load, what identifies them."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ContinualLoraError
from .autoencoder import Autoencoder
from .text import TextEncoder, WordTokenizer
from .unet import UNet

WEIGHT_FILES = ("unet.safetensors", "text.safetensors", "autoencoder.safetensors")
VOCABULARY_FILE = "vocabulary.json"


class TinyWeights(NamedTuple):
    """The loaded modules, fp32 on the CPU, in evaluation mode.

    Attributes:
        unet: the noise predictor.
        text: the text encoder.
        autoencoder: images to latents and back.
        tokenizer: the vocabulary that `text` was trained with.
    """

    unet: UNet
    text: TextEncoder
    autoencoder: Autoencoder
    tokenizer: WordTokenizer


def weights_folder() -> Path:
    """Where the pack keeps the weights that it ships."""
    return Path(__file__).parent / "weights"


def _files(folder: Path) -> list[Path]:
    files = [folder / name for name in (*WEIGHT_FILES, VOCABULARY_FILE)]
    missing = [f"`{file.name}`" for file in files if not file.is_file()]
    if missing:
        raise ContinualLoraError(
            f"The embedded base model needs {len(files)} files in `{folder}`.",
            f"Missing: {', '.join(missing)}.",
            "Install the pack again, or train the model with `python -m scripts.tiny_base.train`.",
        )
    return files


def fingerprint(folder: Path) -> str:
    """What tells one set of weights from another: sha256 over the bytes of its files, 64 hex digits."""
    digest = hashlib.sha256()
    for file in _files(folder):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path) -> dict[str, Tensor]:
    return {key: value.float() for key, value in load_file(file).items()}


def load_weights(folder: Path) -> TinyWeights:
    """Read the four files.

    The modules are built without storage and take the tensors of the files, so nothing is drawn from the global
    random generator. Their parameters are ordinary tensors even where the caller runs under inference mode.

    Args:
        folder: the layout that `scripts.tiny_base.train.export` writes.

    Returns:
        Modules in fp32 on the CPU.

    Raises:
        ContinualLoraError: a file is missing.
    """
    unet_file, text_file, autoencoder_file, vocabulary_file = _files(folder)
    tokenizer = WordTokenizer(json.loads(vocabulary_file.read_text(encoding="utf-8")))
    with torch.device("meta"):
        unet, text, autoencoder = UNet(), TextEncoder(len(tokenizer.words)), Autoencoder()
    with torch.inference_mode(False):
        unet.load_state_dict(_read(unet_file), assign=True)
        text.load_state_dict(_read(text_file), assign=True)
        # The batch norm counts its training steps in an integer that the fp16 export leaves out.
        steps = {"to_latent.num_batches_tracked": torch.tensor(0)}
        autoencoder.load_state_dict(steps | _read(autoencoder_file), assign=True)
    return TinyWeights(unet.train(False), text.train(False), autoencoder.train(False), tokenizer)
