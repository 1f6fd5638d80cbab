"""Learned tokens in prompts."""

import pytest

from trainer.prompts import split_tokens, token_of, without_tokens


@pytest.mark.parametrize(
    ("prompt", "names", "pieces"),
    [
        ("a <b> c", ["b"], ["a ", "<b>", " c"]),
        ("<b>", ["b"], ["<b>"]),
        ("", ["b"], []),
        ("<b><c> <b>", ["b", "c"], ["<b>", "<c>", " ", "<b>"]),
        ("a <fox> and <fox1>", ["fox", "fox1"], ["a ", "<fox>", " and ", "<fox1>"]),
        ("an <unknown> word", ["b"], ["an <unknown> word"]),
        ("a <b> c", [], ["a <b> c"]),
        ("<a.c> <abc>", ["a.c"], ["<a.c>", " <abc>"]),  # a name is no pattern
        ("<B> <b>", ["b"], ["<B> ", "<b>"]),
        ("<<b>>", ["b"], ["<", "<b>", ">"]),
    ],
)
def test_a_prompt_is_cut_at_its_tokens_and_nothing_is_lost(prompt, names, pieces):
    assert split_tokens(prompt, names) == pieces
    assert "".join(pieces) == prompt
    known = [token_of(piece, names) for piece in pieces]
    assert [name for name in known if name] == [piece[1:-1] for piece in pieces if piece[1:-1] in names]


def test_names_may_come_from_any_iterable():
    assert split_tokens("a <b>", iter(["b"])) == ["a ", "<b>"] and token_of("<b>", iter(["b"])) == "b"
    assert without_tokens("a <b>", iter(["b"])) == "a"


def test_prompt_without_its_tokens():
    assert without_tokens("photo of a <fox> animal", ["fox"]) == "photo of a animal"
    assert without_tokens("<fox>", ["fox"]) == ""
    assert without_tokens("photo of a <cat> animal", ["fox"]) == "photo of a <cat> animal"
