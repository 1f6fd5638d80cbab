"""Who does the work of a training: one process alone, or several together; nothing else in the trainer knows."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from .denoiser import Denoiser


class Work(Protocol):
    """How work is shared out.

    Attributes:
        first: whether this process is the one that writes files and reports.
        shares: whether other processes wait for its part of a pass made now.
    """

    first: bool

    @property
    def shares(self) -> bool: ...  # noqa: D102

    def shared(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser whose passes everybody makes a part of; all get all predictions."""
        ...

    def together(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give these parameters the same gradient everywhere, that of all predictions."""
        ...

    def share(self, count: int) -> Iterator[int]:
        """Which of `count` independent pieces of work, 0.., are done here; passes made in between are not shared."""
        ...

    def total(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sum of everybody's."""
        ...

    def apart(self) -> AbstractContextManager[None]:
        """Passes made in this block are not shared."""
        ...

    def agree(self, key: str) -> None:
        """Wait for everybody.

        Raises:
            ContinualLoraError: they are not all at the same `key`.
        """
        ...


class Alone:
    """One process that does everything."""

    first = True
    shares = False

    def shared(self, denoiser: Denoiser) -> Denoiser:
        """The same."""
        return denoiser

    def together(self, parameters: Iterable[nn.Parameter]) -> None:
        """They are."""

    def share(self, count: int) -> Iterator[int]:
        """All."""
        return iter(range(count))

    def total(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These."""
        return dict(tensors)

    def apart(self) -> AbstractContextManager[None]:
        """Nothing to do."""
        return nullcontext()

    def agree(self, key: str) -> None:
        """With itself."""


ALONE = Alone()
