"""The course of a learning rate."""

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
