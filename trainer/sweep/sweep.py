"""A sweep: jobs of which each has its row in a table once it is finished, and is not run again then."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from ..disk.files import write_bytes
from ..disk.lock import writing
from ..errors import ContinualLoraError
from .engines import Engine, Input, Place
from .table import Table


class Job(Protocol):
    """A run that is wanted."""

    @property
    def name(self) -> str:
        """Of its files in the sweep's folder."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """Column -> text: what makes it the same run as that of a row."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a run comes back with.

    Attributes:
        row: column -> value.
        files: ending -> content of a small file that is kept beside the table, under the name of the job.
    """

    row: Mapping[str, object]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A run that the trainer refused or stopped; what it says has to be put right.

    Attributes:
        reason: three sentences.
    """

    reason: str


AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(frozen=True)
class Sweep(Generic[AnyJob]):
    """Jobs, and where what they bring is kept.

    Attributes:
        jobs: all that are wanted.
        table: gets the rows.
        folder: gets the files, and holds the work of runs that were killed.
        also: tables in which a row counts as well.
    """

    jobs: Sequence[AnyJob]
    table: Table
    folder: Path
    also: tuple[Table, ...] = ()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one who runs this sweep; its table is whole then.

        Raises:
            BusyError: another process runs it.
        """
        with writing(self.folder, "running a sweep"):
            self.table.mend()
            yield

    def missing(self) -> list[AnyJob]:
        """The jobs without a row, each once."""
        rows = [row for table in (self.table, *self.also) for row in table.rows()]
        return without_row(self.jobs, rows)

    def run(
        self,
        jobs: Sequence[AnyJob],
        function: Callable[[AnyJob, Place], Outcome],
        engine: Engine,
        inputs: Mapping[str, Input],
    ) -> Iterator[tuple[AnyJob, Outcome | Failure]]:
        """Each job with what became of it, when its files and its row are on disk; to be used inside of `alone`.

        Args:
            jobs: those of `missing`.
            function: makes a run.
            engine: where.
            inputs: what runs read.
        """
        place = Place(inputs, self.folder.absolute())
        for job, outcome in engine.results(partial(_guarded, function), jobs, place):
            if isinstance(outcome, Outcome):
                for ending, content in outcome.files.items():
                    write_bytes(self.folder / f"{job.name}{ending}", content)
                self.table.append({**outcome.row, **job.identity})
            yield job, outcome


def without_row(jobs: Iterable[AnyJob], rows: Iterable[Mapping[str, str]]) -> list[AnyJob]:
    """The jobs that no row belongs to, each once."""
    found = list(rows)
    done: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    missing: dict[tuple[str, ...], AnyJob] = {}
    for job in jobs:
        columns, own = tuple(job.identity), tuple(job.identity.values())
        if columns not in done:
            done[columns] = {tuple(row[name] for name in columns) for row in found}
        if own not in done[columns]:
            missing.setdefault(own, job)
    return list(missing.values())


def _guarded(function: Callable[[AnyJob, Place], Outcome], job: AnyJob, place: Place) -> Outcome | Failure:
    """A run whose error is a result: the others go on."""
    try:
        return function(job, place)
    except ContinualLoraError as error:
        return Failure(str(error))
