"""Where the runs of a sweep are made: an engine is a file here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class Input:
    """What runs read: a file, or a folder with those of its files that count.

    Attributes:
        root: the file or the folder.
        files: the files; `root` itself if it is one.
    """

    root: Path
    files: tuple[Path, ...]

    @classmethod
    def of_file(cls, path: Path) -> "Input":
        """A single one."""
        return cls(path.absolute(), (path.absolute(),))


@dataclass(frozen=True)
class Place:
    """Where a run finds its files and may work, on the machine that it is made on.

    Attributes:
        inputs: name -> what it reads.
        work: a folder for what a run that was killed goes on from.
    """

    inputs: Mapping[str, Input]
    work: Path


class Engine(Protocol):
    """Makes runs."""

    def results(self, function: Callable[[J, Place], R], jobs: Sequence[J], place: Place) -> Iterator[tuple[J, R]]:
        """Each job with its result, as soon as it is finished, in any order.

        Args:
            function: makes a run; a function of a module, for engines of several processes.
            jobs: its first argument.
            place: on this machine.
        """
        ...
