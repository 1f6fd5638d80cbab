"""The prompts of a task, encoded with its learned word as it is at the moment."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser, TokenVectors
from ..settings import TrainSettings
from .captions import step_prompts
from .state import TrainState


class PromptEncoder:
    """See the module.

    Args:
        denoiser: encodes.
        token: of the concept, without brackets.
        state: has its vectors.
        earlier: the tokens of the earlier concepts.
        settings: what changes in a prompt, and how many meet in a batch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        token: str,
        state: TrainState,
        earlier: Mapping[str, TokenVectors],
        settings: TrainSettings,
    ) -> None:
        self._denoiser, self._token, self._state, self._earlier = denoiser, token, state, earlier
        self._settings = settings
        # Once and for all, where nothing in a prompt changes; with tags in another order they might grow too many.
        fixed = settings.token_learning_rate == 0 and not settings.shuffle_tags
        self._fixed: dict[str, Conditioning] | None = {} if fixed else None

    def __call__(self, texts: Sequence[str]) -> Conditioning:
        """A batch of prompts, each different one encoded once; with the token's graph."""
        tokens: dict[str, TokenVectors] = {**self._earlier, self._token: {**self._state.token}}
        known = {} if self._fixed is None else self._fixed
        for text in dict.fromkeys(texts):
            if text not in known:
                known[text] = self._denoiser.encode_prompt(text, tokens)
        return Conditioning.cat([known[text] for text in texts])

    def of_images(self, prompts: Sequence[str]) -> Callable[[Tensor, torch.Generator], Conditioning]:
        """Indices of images [B], and what draws at random of their captions -> what they are trained under."""

        def encode(indices: Tensor, rng: torch.Generator) -> Conditioning:
            return self(step_prompts([prompts[i] for i in indices.tolist()], self._token, self._settings, rng))

        return encode

    def check_lengths(self, prompts: Iterable[str]) -> None:
        """Fail now, not at some step, where `Conditioning.cat` cannot put captions into one batch.

        Args:
            prompts: those that may meet in one, at least one.
        """
        if self._settings.batch_size == 1:
            return
        dropped = [""] if self._settings.caption_dropout else []
        first, *others = dict.fromkeys([*prompts, *dropped])
        with torch.no_grad():
            one = self([first])
            if one.joint:
                for text in others:
                    Conditioning.cat([one, self([text])])
