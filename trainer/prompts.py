"""Learned tokens in prompts, where `<name>` stands for the word vector of a taught concept; the anchor class."""

import re
from collections.abc import Iterable

# Words of a class noun that is a person, in the singular and where the plural is more than an s.
PERSON_NOUNS = {"person", "people", "human", "man", "men", "woman", "women", "lady", "ladies", "guy", "boy", "girl"}
PERSON_NOUNS |= {"baby", "babies", "child", "children", "kid", "teenager", "adult", "face", "portrait"}


def split_tokens(prompt: str, names: Iterable[str]) -> list[str]:
    """Cut a prompt at its tokens.

    Args:
        prompt: for example "photo of a <fox1> animal".
        names: the tokens that are known, without brackets.

    Returns:
        Text and tokens in order; a token is a piece `<name>`. "a <b> c" with {"b"} gives ["a ", "<b>", " c"].
    """
    known = "|".join(re.escape(f"<{name}>") for name in sorted(names))
    return [piece for piece in re.split(f"({known})", prompt) if piece] if known else [prompt]


def token_of(piece: str, names: Iterable[str]) -> str | None:
    """The name in a piece `<name>` if it is a known token, else None."""
    name = piece[1:-1] if piece.startswith("<") and piece.endswith(">") else None
    return name if name in set(names) else None


def without_tokens(prompt: str, names: Iterable[str]) -> str:
    """The prompt with its tokens left out, for text encoders that never learned them."""
    names = list(names)
    kept = [piece for piece in split_tokens(prompt, names) if token_of(piece, names) is None]
    return " ".join("".join(kept).split())


def base_prompt(chosen: str, class_noun: str) -> str:
    """c_0: a common concept that the base knows and that is not the class to be learned, unless one is chosen."""
    words = {word.removesuffix("s") for word in class_noun.lower().split()} | set(class_noun.lower().split())
    return chosen or ("photo of a person" if PERSON_NOUNS.isdisjoint(words) else "photo of a tree")
