"""The engine that `make benchmark` uses: a process for each run, several at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from trainer.sweep.engines import J, Place, R


@dataclass(frozen=True)
class Processes:
    """See `trainer.sweep.engines.Engine`; one process each, so that the peak memory is its own.

    Attributes:
        count: runs at a time.
    """

    count: int

    def results(self, function: Callable[[J, Place], R], jobs: Sequence[J], place: Place) -> Iterator[tuple[J, R]]:
        """See `Engine`."""
        with get_context("spawn").Pool(self.count, maxtasksperchild=1) as pool:
            yield from pool.imap_unordered(partial(_with_job, function, place), jobs)


def _with_job(function: Callable[[J, Place], R], place: Place, job: J) -> tuple[J, R]:
    return job, function(job, place)
