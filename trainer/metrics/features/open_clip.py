"""CLIP models of open_clip, from weights that are on this machine: nothing is downloaded here."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ContinualLoraError
from .resize import squeeze

_BATCH_SIZE = 32
_HUB_FILE = "open_clip_model.safetensors"


class OpenClip:
    """The features of images and prompts that CLIP was trained to align, L2-normalized.

    Source: Radford et al., arXiv 2103.00020; Ilharco et al., open_clip. Mean, deviation and size are the model's;
    images are squeezed to a square where open_clip mostly crops its middle [D].

    Args:
        weights: a .safetensors file in open_clip's layout, or one of open_clip's tags ("laion2b_s34b_b79k") whose
            .safetensors file is in the local Hugging Face cache.
        architecture: a name of `open_clip.list_models()`. It names the activation too: with a file of OpenAI's
            weights, "ViT-B-32-quickgelu". A tag knows it.
        device: where the network runs; the features come back on the CPU.

    Raises:
        ContinualLoraError: open_clip is not installed, the architecture needs files of the hub, or the weights are not
            on this machine, not safetensors, or of another architecture.
    """

    def __init__(self, weights: str | Path, architecture: str = "ViT-B-32", device: torch.device | str = "cpu") -> None:
        package = _package()
        _check_architecture(package, architecture)
        tag = {} if _is_file(weights) else _tag(package, architecture, str(weights))
        file = _cached(tag, architecture, str(weights)) if tag else _existing(Path(weights))
        self.name = f"CLIP {architecture} (open_clip, {weights if tag else file.name})"
        self._device = torch.device(device)
        self._network = _load(package, file, architecture, tag).to(self._device)
        self._tokenizer = package.get_tokenizer(architecture)
        self._mean, self._std = (
            torch.tensor(self._network.visual.preprocess_cfg[key], device=self._device).view(3, 1, 1)
            for key in ("mean", "std")
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to features [B, D] of L2 norm 1, one batch at a time."""
        return torch.cat([self._encode(batch.to(self._device)).cpu() for batch in torch.split(images, _BATCH_SIZE)])

    @torch.no_grad()
    def encode_text(self, prompt: str) -> Tensor:
        """A prompt to a feature [D] of L2 norm 1; what is beyond the context, mostly 77 tokens, is cut off."""
        tokens = self._tokenizer([prompt]).to(self._device)
        feature: Tensor = self._network.encode_text(tokens, normalize=True)[0].cpu()
        return feature

    def _encode(self, images: Tensor) -> Tensor:
        """One batch, on the network's device."""
        size = self._network.visual.preprocess_cfg["size"]
        pixels = squeeze(images, (size, size) if isinstance(size, int) else tuple(size))
        features: Tensor = self._network.encode_image((pixels - self._mean) / self._std, normalize=True)
        return features


def _package() -> Any:  # noqa: ANN401  (the package has no types)
    """open_clip, imported only here: it takes seconds."""
    try:
        import open_clip
    except ImportError as error:
        raise ContinualLoraError(
            "CLIP features of open_clip need its package.",
            f"`{error.name}` is not installed.",
            "Run `pip install open_clip_torch`.",
        ) from error
    return open_clip


def _check_architecture(package: Any, architecture: str) -> None:  # noqa: ANN401
    """It must be open_clip's own, and so must its tokenizer: the others come from the hub, by name."""
    known = architecture in package.list_models()
    text = package.get_model_config(architecture)["text_cfg"] if known else {}
    if not known or "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise ContinualLoraError(
            "The architecture must be one of `open_clip.list_models()` that needs no tokenizer from the hub.",
            f"`{architecture}` {'needs one' if known else 'is none of them'}.",
            "Take for example `ViT-B-32` or `ViT-L-14`, with weights for it.",
        )


def _is_file(weights: str | Path) -> bool:
    """Tags have no suffix and no folder."""
    return isinstance(weights, Path) or Path(weights).suffix != "" or len(Path(weights).parts) > 1


def _existing(file: Path) -> Path:
    """The file itself, if it can be read."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise ContinualLoraError(
            "The weights must be a .safetensors file: other formats can run code when they are opened.",
            f"`{file}` {'does not exist' if file.suffix == '.safetensors' else 'is not one'}.",
            "Give the path of a .safetensors file in open_clip's layout.",
        )
    return file


def _tag(package: Any, architecture: str, tag: str) -> dict[str, Any]:  # noqa: ANN401
    """What open_clip knows of weights that it has a name for."""
    known: dict[str, Any] = package.get_pretrained_cfg(architecture, tag)
    if not known:
        tags = package.list_pretrained_tags_by_model(architecture)
        raise ContinualLoraError(
            f"The weights must be a .safetensors file or a tag that open_clip has for {architecture}.",
            f"`{tag}` is neither; the tags are: {', '.join(tags) or 'none'}.",
            "Give the path of a file, or one of the tags.",
        )
    return known


def _cached(tag: Mapping[str, Any], architecture: str, name: str) -> Path:
    """The tag's file in the local cache, looked up without asking the hub."""
    from huggingface_hub import try_to_load_from_cache

    # "owner/repository/" or "owner/repository/file", the file mostly with a suffix that we do not read.
    repository, _, file = tag["hf_hub"].rpartition("/")
    wanted = Path(file).with_suffix(".safetensors").name if file else _HUB_FILE
    found = try_to_load_from_cache(repository, wanted)
    if not isinstance(found, str):
        raise ContinualLoraError(
            f"The weights `{name}` of {architecture} are read from the local Hugging Face cache, never downloaded.",
            f"`{wanted}` of `{repository}` is not there.",
            f"Run `hf download {repository} {wanted}`, or give the path of a .safetensors file.",
        )
    return Path(found)


def _load(package: Any, file: Path, architecture: str, tag: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The network in eval mode, with the file's weights and the tag's mean, deviation and activation."""
    # open_clip draws start values from the global generator.
    with torch.random.fork_rng(devices=[]), _without_warning():
        network = package.create_model(
            architecture,
            pretrained=None,
            pretrained_image=False,
            pretrained_text=False,
            force_quick_gelu=bool(tag.get("quick_gelu")),
            force_preprocess_cfg=dict(tag),
        )
    network.load_state_dict(_read(file, architecture, network.state_dict()))
    return network.train(False).requires_grad_(False)


def _read(file: Path, architecture: str, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, which must have the names and shapes of the network's."""
    expected = f"The weights must be the safetensors of open_clip's {architecture}, with its names and shapes."
    do = "Give the file of this architecture, or name the file's architecture."
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ContinualLoraError(expected, f"`{file.name}` cannot be read: {error}.", do) from error
    shapes, wanted = ({key: value.shape for key, value in state.items()} for state in (weights, start))
    wrong = sorted(key for key in {*shapes, *wanted} if shapes.get(key) != wanted.get(key))
    if wrong:
        came = f"In `{file.name}` {len(wrong)} are missing, unknown or of another shape, the first `{wrong[0]}`."
        raise ContinualLoraError(expected, came, do)
    return weights


@contextmanager
def _without_warning() -> Iterator[None]:
    """Keep back that the network has random weights; it has, until the file is loaded."""

    def keep(record: logging.LogRecord) -> bool:
        return "initialized randomly" not in record.getMessage()

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)
