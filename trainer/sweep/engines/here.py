"""One run after another, in this process."""

from collections.abc import Callable, Iterator, Sequence

from . import J, Place, R


class Here:
    """See the module."""

    def results(self, function: Callable[[J, Place], R], jobs: Sequence[J], place: Place) -> Iterator[tuple[J, R]]:
        """See `Engine`."""
        for job in jobs:
            yield job, function(job, place)
