"""C-LoRA's penalty: do not change again what earlier concepts changed.

lambda * || |sum_{m<n} B_m A_m| (.) B_n A_n ||_F^2 over a fresh A_n, B_n on top of the frozen past sum.
Source: Smith et al., arXiv 2304.06027, equation 4; as compared by Jha et al., arXiv 2410.00700. It is smallest at
B_n A_n -> 0, where nothing new is learned: see the adapter's norm in the log.
"""

import torch
from torch import Tensor

from ..adapters.adapter import Adapter
from .method import Method

NAME = "c_lora"


class CLora(Method):
    """See the module; it carries nothing, the past sum is the adapter's."""

    @property
    def uses(self) -> set[str]:
        """See `Method`."""
        return {"penalty_weight"}

    def penalty(self, adapter: Adapter) -> Tensor | None:
        """See the module; None at the first task."""
        if not adapter.past:
            return None
        terms = [(adapter.past[name] * delta).square().sum() for name, delta in adapter.deltas().items()]
        return self.settings.penalty_weight * torch.stack(terms).sum()


METHOD = CLora
