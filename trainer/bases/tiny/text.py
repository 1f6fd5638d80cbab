"""The text side of the embedded base: a word-level tokenizer and a small CLIP-style text encoder.

Layer names and arithmetic are CLIP's (causal, pre-norm, quick GELU), so the host's own classes load the weights.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LENGTH = 24
WIDTH = 128
HEADS = 4
LAYERS = 2
START, END, UNKNOWN = "<start>", "<end>", "<unknown>"


class WordTokenizer:
    """One token per word; a word it does not know becomes `<unknown>`.

    Args:
        words: the vocabulary in order of its ids.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = list(words)
        self.ids = {word: index for index, word in enumerate(words)}

    def encode(self, text: str) -> list[int]:
        """Ids of the words of `text`, lower-cased, punctuation dropped, without start and end."""
        unknown = self.ids[UNKNOWN]
        return [self.ids.get(word, unknown) for word in re.findall(r"[a-z0-9]+", text.lower())]


def frame(ids: list[int], start: int, end: int) -> list[int]:
    """Put start and end around `ids` and pad with end to MAX_LENGTH, cutting what is too long."""
    kept = ids[: MAX_LENGTH - 2]
    return [start, *kept, *[end] * (MAX_LENGTH - 1 - len(kept))]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, WIDTH * 4), nn.Linear(WIDTH * 4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        out: Tensor = self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return out


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn, self.mlp = _Attention(), _MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Embeddings(nn.Module):
    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary_size, WIDTH)
        self.position_embedding = nn.Embedding(MAX_LENGTH, WIDTH)


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))


class _TextModel(nn.Module):
    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(vocabulary_size)
        self.encoder = _Encoder()
        self.final_layer_norm = nn.LayerNorm(WIDTH)


class TextEncoder(nn.Module):
    """Word vectors in, context for the cross-attention out."""

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.text_model = _TextModel(vocabulary_size)

    @property
    def word_vectors(self) -> Tensor:
        """The vocabulary's vectors, [V, WIDTH]."""
        return self.text_model.embeddings.token_embedding.weight

    def forward(self, vectors: Tensor) -> Tensor:
        """Encode a sequence of word vectors.

        Args:
            vectors: [B, MAX_LENGTH, WIDTH], without positions.

        Returns:
            The context, [B, MAX_LENGTH, WIDTH].
        """
        x = vectors + self.text_model.embeddings.position_embedding.weight
        for layer in self.text_model.encoder.layers:
            x = layer(x)
        out: Tensor = self.text_model.final_layer_norm(x)
        return out
