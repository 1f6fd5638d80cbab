"""Sanity check 1: does the model tell its concepts apart? The diffusion classifier on the training images.

Source: Jha et al., arXiv 2410.00700 (accuracy after each task, with and without DC in the Fisher).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..apply import apply_sequence
from ..classifier import classify
from ..denoiser import Denoiser, encode_one_by_one
from ..disk.sequence import ConceptSequence
from ..prompts import base_prompt
from .pictures import Progress

PHASE = "classify"


def dc_accuracy(
    open_base: Callable[[], Denoiser],
    line: ConceptSequence,
    after: Iterable[int],
    trials: int,
    on_progress: Progress = lambda phase, done, total: None,
) -> dict[tuple[int, int], float]:
    """The share of a concept's images whose own prompt explains them best.

    The candidates are the prompts of all concepts up to the task, and c_0.

    Args:
        open_base: a fresh view of the base.
        line: the sequence, which holds the images.
        after: tasks i, 0-based.
        trials: (time, noise) draws for each image, the same for all prompts.
        on_progress: told ("classify", done, total) for each concept; may raise to stop.

    Returns:
        (i, j) -> 0..1, concept j after task i, j <= i.
    """
    tasks, rows = line.tasks, list(after)
    total, accuracies = sum(i + 1 for i in rows), {}
    latents: dict[int, Tensor] = {}  # the autoencoder is the same after every task
    for i in rows:
        base = open_base()
        tokens = apply_sequence(base, line.up_to(i + 1))
        texts = [task.prompt for task in tasks[: i + 1]]
        texts.append(base_prompt(tasks[i].settings["base_concept"], tasks[i].class_noun))
        with torch.no_grad():
            prompts = [base.encode_prompt(text, tokens) for text in texts]
            for j in range(i + 1):
                if j not in latents:
                    latents[j] = encode_one_by_one(base, line.images(tasks[j]))
                found = classify(base, latents[j], prompts, trials, seed=0, pruned=False)
                accuracies[i, j] = float((found.predicted == j).float().mean())
                on_progress(PHASE, len(accuracies), total)
        del base, prompts  # before the next one is opened: each may have the weights on the GPU for itself
    return accuracies
