"""What an image is trained under at a step: its prompt, its tags in another order, or the empty prompt."""

from collections.abc import Sequence

import torch

from ..settings import TrainSettings


def split_tags(prompt: str) -> list[str]:
    """The parts between commas, without blanks around them; a comma inside parentheses (a weight) parts nothing."""
    parts, depth = [""], 0
    for letter in prompt:
        depth = max(0, depth + (letter == "(") - (letter == ")"))
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def shuffled_tags(prompt: str, token: str, rng: torch.Generator) -> str:
    """Tags in a random order; those up to and including the one with the token stay where they are.

    Args:
        prompt: "photo of a <fox>, red, in snow", for example.
        token: without brackets; where the prompt lacks it, all tags change places.
        rng: draws a permutation of the tags that change places.
    """
    tags = split_tags(prompt)
    first = next((index + 1 for index, tag in enumerate(tags) if f"<{token}>" in tag), 0)
    order = torch.randperm(len(tags) - first, generator=rng).tolist()
    return ", ".join([*tags[:first], *(tags[first + index] for index in order)])


def step_prompts(prompts: Sequence[str], token: str, settings: TrainSettings, rng: torch.Generator) -> list[str]:
    """The prompts of a batch as they are trained at a step.

    Args:
        prompts: of its images.
        token: of the concept, without brackets.
        settings: `caption_dropout` and `shuffle_tags`; with both off the prompts stay and nothing is drawn.
        rng: of the step's captions alone, so that the images, times and noises drawn are the same with and without.
    """
    chosen = []
    for prompt in prompts:
        dropped = settings.caption_dropout > 0 and torch.rand((), generator=rng).item() < settings.caption_dropout
        text = shuffled_tags(prompt, token, rng) if settings.shuffle_tags else prompt
        chosen.append("" if dropped else text)
    return chosen
