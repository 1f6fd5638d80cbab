"""Prompts of the earlier concepts, encoded when they are needed."""

import torch

from trainer.denoiser import Conditioning
from trainer.trained import MOST_ENCODED, EncodedPrompts


def test_prompts_are_encoded_once_and_on_demand():
    asked: list[str] = []

    def encode(text: str) -> Conditioning:
        asked.append(text)
        return Conditioning(torch.full((1, 1, 1), float(len(text))))

    prompts = EncodedPrompts(["a", "bb", "ccc"], encode)
    assert len(prompts) == 3 and not asked
    assert prompts[1].context.item() == 2 and prompts[-1].context.item() == 3 and prompts[1] is prompts[1]
    assert asked == ["bb", "ccc"]
    assert [prompt.context.item() for prompt in prompts] == [1, 2, 3]
    assert [prompt.context.item() for prompt in prompts[1:]] == [2, 3]
    assert asked == ["bb", "ccc", "a"]


def test_of_very_many_prompts_the_last_used_are_kept():
    asked: list[str] = []
    texts = [str(j) for j in range(MOST_ENCODED + 1)]

    def encode(text: str) -> Conditioning:
        asked.append(text)
        return Conditioning(torch.zeros(1, 1, 1))

    prompts = EncodedPrompts(texts, encode)
    assert len(list(prompts)) == len(texts) == len(asked)
    assert prompts[1] is prompts[1] and len(asked) == len(texts)  # still there
    assert prompts[0] is prompts[0] and asked == [*texts, "0"]  # the oldest had to go
