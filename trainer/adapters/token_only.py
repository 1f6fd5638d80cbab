"""No adapter: only the word vector is learned, as in Textual Inversion (Gal et al., arXiv 2208.01618)."""

from torch import Tensor

from .adapter import Adapter, Files

NAME = "token_only"


class TokenOnly(Adapter):
    """Nothing is added to the model; its "lora" file is empty."""

    uses = frozenset()

    def deltas(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def files(self) -> Files:
        """None."""
        return {"lora": {}}

    def state_of(self, files: Files) -> dict[str, Tensor]:
        """Empty."""
        return {}


ADAPTER = TokenOnly
