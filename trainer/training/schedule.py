"""The course of a learning rate, and which steps something is due after."""

import math


def schedule_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate: linear warm-up, then constant, half a cosine, or linear to 0.

    Args:
        step: 0-based.
        total: steps in all.
        warmup: steps over which it rises from zero.
        schedule: "constant", "cosine" or "linear".
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 + 0.5 * math.cos(math.pi * progress)}[schedule]


def is_due(step: int, every: int, last: int) -> bool:
    """Whether what is done every so many steps and after the last is due after a step; `every` 0 is never."""
    return every > 0 and (step % every == 0 or step == last)
