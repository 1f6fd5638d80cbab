"""Learned tokens in the host's prompts: `<name>` in any text becomes the word vector of that concept."""

import copy
from collections.abc import Mapping
from typing import Any

from comfy.sd1_clip import SDTokenizer
from torch import Tensor

from ...denoiser import TokenVectors
from ...prompts import split_tokens, token_of


class TokenAwareTokenizer:
    """Stands in for the tokenizer inside a host's `SDTokenizer`: puts vectors where the host would put ids.

    The host passes tensors among the token ids on to the text encoder as they are; weights such as `(<fox>:1.2)` and
    `embedding:name` keep working because the host parses them before it calls here.

    Args:
        host: whose tokenizer it wraps.
        vectors: token -> its vector for this text encoder, or None where the token has none: the encoder then reads the
            prompt without it.
    """

    def __init__(self, host: SDTokenizer, vectors: Mapping[str, Tensor | None]) -> None:
        self._tokenizer = host.tokenizer
        self._inner = slice(host.tokens_start, -1 if host.tokenizer_adds_end_token else None)
        self._vectors = dict(vectors)

    def __call__(self, text: str) -> dict[str, list[Any]]:
        """Like the wrapped tokenizer: start, pieces, end."""
        ids: list[Any] = []
        for piece in split_tokens(text, self._vectors):
            if name := token_of(piece, self._vectors):
                ids += [vector for vector in [self._vectors[name]] if vector is not None]
            else:
                ids += self._tokenizer(piece)["input_ids"][self._inner]
        empty = self._tokenizer("")["input_ids"]
        start = self._inner.start
        return {"input_ids": [*empty[:start], *ids, *empty[start:]]}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def text_encoders(tokenizer: object) -> dict[str, SDTokenizer]:
    """The `SDTokenizer`s of a host tokenizer by text encoder, {"clip_l": ...}; by family "clip_g", "t5xxl", too."""
    return {name: part for name, part in vars(tokenizer).items() if isinstance(part, SDTokenizer)}


def with_tokens(tokenizer: object, tokens: Mapping[str, TokenVectors]) -> object:
    """A copy of a host tokenizer that knows the tokens; the original stays as it is."""
    aware = copy.copy(tokenizer)
    for encoder, part in text_encoders(tokenizer).items():
        vectors = {name: encoders.get(encoder) for name, encoders in tokens.items()}
        aware_part = copy.copy(part)
        aware_part.tokenizer = TokenAwareTokenizer(part, vectors)
        setattr(aware, encoder, aware_part)
    return aware
