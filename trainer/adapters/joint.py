"""One layer for queries, keys and values, with the keys and values as layers that an adapter can sit on."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ContinualLoraError
from .factors import Lora, LoraFactors

# A joint projection's parts, in the order of its rows.
PARTS = ("to_q", "to_k", "to_v")


class Rows(nn.Linear):
    """A part of a joint projection: some rows of what it has just answered.

    Its weight stands for the shape and the place of those rows and is never read: the layer may keep its own packed, or
    elsewhere.

    Args:
        joint: the layer, of 3 * n rows.
    """

    def __init__(self, joint: nn.Module) -> None:
        weight = joint.get_parameter("weight")
        rows, columns = weight.shape[0] // len(PARTS), weight.shape[1]
        super().__init__(columns, rows, bias=False, device="meta")  # no memory, no random numbers
        self.weight = nn.Parameter(torch.zeros(1, 1, device=weight.device).expand(rows, columns), requires_grad=False)
        self.answer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The rows of the joint answer to x."""
        assert self.answer is not None
        return self.answer


class JointProjection(nn.Module):
    """A linear layer of 3 * n rows for Q, K and V; `to_k` and `to_v` may be wrapped or replaced.

    The layer itself runs once and as it is, so that its host can keep and cast the weights in its own way.
    """

    def __init__(self, joint: nn.Module) -> None:
        super().__init__()
        self.joint = joint
        self._rows = [Rows(joint), Rows(joint)]  # a list, so not twice in the tree
        self.to_k, self.to_v = self._rows

    def forward(self, x: Tensor) -> Tensor:
        """Text [B, M, in] -> Q, K and V one behind the other, [B, M, 3 n]."""
        q, *answers = self.joint(x).chunk(3, dim=-1)
        for rows, answer in zip(self._rows, answers, strict=True):
            rows.answer = answer
        output = torch.cat([q, self.to_k(x), self.to_v(x)], dim=-1)
        for rows in self._rows:
            rows.answer = None
        return output


def join_factors(parts: Mapping[str, LoraFactors]) -> LoraFactors:
    """LoRAs of the parts of a joint projection as one of the whole, of the sum of the ranks: the same update, exactly.

    Args:
        parts: "to_k", "to_v" or both.
    """
    first = next(iter(parts.values()))
    count, rank, scale = len(first.up), sum(factors.rank for factors in parts.values()), first.alpha / first.rank
    up, column = first.up.new_zeros(3 * count, rank), 0
    for name, factors in parts.items():
        row = count * PARTS.index(name)
        up[row : row + count, column : column + factors.rank] = factors.up * (factors.alpha / factors.rank / scale)
        column += factors.rank
    return LoraFactors(torch.cat([factors.down for factors in parts.values()]), up, scale * rank)


def split_factors(name: str, factors: LoraFactors) -> Lora:
    """A LoRA of a whole joint projection as LoRAs of its parts; ranks that add nothing to a part are left out.

    Args:
        name: of the layer.
        factors: `up` is [3 n, rank].

    Raises:
        ContinualLoraError: it changes the queries, too.
    """
    query, *others = factors.up.chunk(3)
    if query.any():
        raise ContinualLoraError(
            "An existing LoRA should hold factors of the keys and values of the text, and nothing else.",
            f"In `{name}` it changes the queries, too.",
            "Apply this LoRA to the model with Load LoRA: it then belongs to the base, stays frozen, and the sequence "
            "is trained on top of it.",
        )
    lora: Lora = {}
    for part, up in zip(PARTS[1:], others, strict=True):
        used = up.any(0)
        if rank := int(used.sum()):
            alpha = factors.alpha * rank / factors.rank
            lora[f"{name}.{part}"] = LoraFactors(factors.down[used], up[:, used], alpha)
    return lora
