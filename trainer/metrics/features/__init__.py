"""Features of images and prompts: the contracts of the encoders, one file for each encoder."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from ...errors import ContinualLoraError


class FeatureEncoder(Protocol):
    """Turns images into unit vectors whose cosines say how alike the images are.

    Attributes:
        name: what the report says the features come from.
    """

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in 0..1 to features [B, D] of L2 norm 1."""
        ...


@runtime_checkable
class TextImageEncoder(FeatureEncoder, Protocol):
    """An encoder of prompts too: the cosine of a prompt and an image says how well they fit."""

    def encode_text(self, prompt: str) -> Tensor:
        """A prompt to a feature [D] of L2 norm 1."""
        ...


def check_feature_sets(x: Tensor, y: Tensor) -> None:
    """Both sets must be [N, D] and [M, D] with N, M >= 1.

    Raises:
        ContinualLoraError: They are not.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise ContinualLoraError(
            "Two sets of images are compared by features of one encoder, [N, D] and [M, D], N and M at least 1.",
            f"The shapes are {list(x.shape)} and {list(y.shape)}.",
            "Give at least one image on each side, and encode both with the same encoder.",
        )
