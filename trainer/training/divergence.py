"""A loss or a gradient that is no number ends a training before it changes anything."""

import math

from ..errors import ContinualLoraError


def check_numbers(loss: float, penalty: float, gradient_norm: float, where: str) -> None:
    """Stop before a step is made of what is infinite or not a number.

    Args:
        loss: of the step, without the penalty.
        penalty: what the methods add.
        gradient_norm: of all that is trained, before clipping.
        where: such as "step 3 of 200".

    Raises:
        ContinualLoraError: says which of them, at which step, and the settings to look at.
    """
    if math.isfinite(loss) and math.isfinite(penalty) and math.isfinite(gradient_norm):
        return
    kept = "what was trained before this step is kept."
    if not math.isfinite(penalty):
        raise ContinualLoraError(
            "The penalty should be a number.",
            f"It became {penalty} at {where}.",
            f"Lower penalty_weight or learning_rate; {kept}",
        )
    if not math.isfinite(loss):
        raise ContinualLoraError(
            "The loss should be a number.",
            f"It became {loss} at {where}.",
            f"Lower the learning rates, choose another class noun, or set mixed_precision to no; {kept}",
        )
    raise ContinualLoraError(
        "The gradient should be a number.",
        f"Its norm became {gradient_norm} at {where}, although the loss was {loss:g}.",
        f"Set mixed_precision to no, or lower the learning rates; {kept}",
    )
