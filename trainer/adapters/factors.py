"""A LoRA as plain tensors, independent of peft, of any file layout and of any model."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LoraFactors:
    """The low-rank update of one layer: `delta = alpha / rank * up @ down`.

    Source: Hu et al., arXiv 2106.09685.

    Attributes:
        down: [rank, in_features].
        up: [out_features, rank].
        alpha: the scale's numerator.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return int(self.down.shape[0])

    @property
    def delta(self) -> Tensor:
        """The update of the weight, [out_features, in_features]."""
        return (self.alpha / self.rank) * (self.up @ self.down)


# A whole LoRA: layer name in the U-Net ("input_blocks.1.1.transformer_blocks.0.attn2.to_k") -> its factors.
Lora = dict[str, LoraFactors]
