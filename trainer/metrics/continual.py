"""What a sequence of concepts did to each of them: distances after the tasks.

In all of them `real[j]` is [N_j, D], features of concept j's images, and `generated[i][j]`, j <= i, is [M, D], features
of concept j generated after task i, with the same seeds for all i. N tasks. Per concept first, then the mean over the
concepts. `squared` takes MMD^2 for MMD; only MMD is a distance, so only with it `|bwt_mmd| <= f_mmd`.

Source: Jha et al., arXiv 2410.00700, after Smith et al., arXiv 2304.06027. They report one of MMD and MMD^2
without saying which: both here [D].
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..errors import ContinualLoraError
from .mmd import mmd, mmd_squared

RealSets = Sequence[Tensor]
GeneratedSets = Sequence[Sequence[Tensor]]


def a_mmd(real: RealSets, generated: GeneratedSets, *, squared: bool) -> Tensor:
    """A: `mean_j MMD(real_j, generated_Nj)`, how far the concepts are from the truth after the last task.

    Returns:
        Scalar, float64, 0 or more, lower is better.
    """
    _check(real, generated)
    return _mean_mmd(zip(real, generated[-1], strict=True), squared)


def new_mmd(real: RealSets, generated: GeneratedSets, *, squared: bool) -> Tensor:
    """`mean_j MMD(real_j, generated_jj)`, how well each concept was learned at its own turn.

    Returns:
        Scalar, float64, 0 or more, lower is better.
    """
    _check(real, generated)
    return _mean_mmd(zip(real, _own_turn(generated), strict=True), squared)


def f_mmd(real: RealSets, generated: GeneratedSets, *, squared: bool) -> Tensor:
    """F, forgetting: `mean_{j<N} MMD(generated_jj, generated_Nj)`, how much the earlier concepts changed.

    Returns:
        Scalar, float64, 0 or more, lower is better; 0 for a single task, nothing could be forgotten yet [D].
    """
    _check(real, generated)
    return _mean_mmd(zip(_own_turn(generated)[:-1], generated[-1][:-1], strict=True), squared)


def bwt_mmd(real: RealSets, generated: GeneratedSets, *, squared: bool) -> Tensor:
    """BwT, backward transfer: `mean_{j<N} [MMD(real_j, generated_jj) - MMD(real_j, generated_Nj)]`.

    Returns:
        Scalar, float64, higher is better: below 0 the later tasks did harm, 0 is no drift; 0 for a single task [D].
    """
    _check(real, generated)
    before = _mean_mmd(zip(real[:-1], _own_turn(generated)[:-1], strict=True), squared)
    return before - _mean_mmd(zip(real[:-1], generated[-1][:-1], strict=True), squared)


def _own_turn(generated: GeneratedSets) -> list[Tensor]:
    """`generated_jj` for each j."""
    return [sets[-1] for sets in generated]


def _mean_mmd(pairs: Iterable[tuple[Tensor, Tensor]], squared: bool) -> Tensor:
    """The mean over pairs of sets, 0 for none."""
    distance = mmd_squared if squared else mmd
    distances = [distance(x, y) for x, y in pairs]
    return torch.stack(distances).mean() if distances else torch.zeros((), dtype=torch.float64)


def _check(real: RealSets, generated: GeneratedSets) -> None:
    """After task i there must be i + 1 concepts."""
    counts = [len(sets) for sets in generated]
    if not real or counts != list(range(1, len(real) + 1)):
        raise ContinualLoraError(
            "After each task all concepts up to it must be generated: 1 set after the first, 2 after the second, ...",
            f"There are {len(real)} concepts with real images, and {counts} sets after the tasks.",
            "Generate what is missing.",
        )
