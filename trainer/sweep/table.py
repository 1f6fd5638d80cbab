"""A table on disk: a row for each finished run, appended as soon as it is there."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..disk.files import storing, sync_folder
from ..errors import ContinualLoraError


class Table:
    """Rows in a CSV file; who appends holds the lock of the sweep's folder.

    Args:
        path: the file; made with the first row.
        columns: of a row.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)

    def rows(self) -> list[dict[str, str]]:
        """The finished runs; a last line without its end, which a killed run left, is none."""
        whole = self._content()
        text = whole[: whole.rfind(b"\n") + 1].decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def mend(self) -> None:
        """Cut off what a killed run left of its last line.

        Raises:
            ContinualLoraError: the file has other columns.
        """
        content = self._content()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with storing(self.path), self.path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        found = content[:end].decode().splitlines()[:1]
        if found and found != self._line(dict(zip(self.columns, self.columns, strict=True))).splitlines():
            raise ContinualLoraError(
                f"`{self.path}` should have the columns {', '.join(self.columns)}.",
                f"It has {', '.join(found[0].split(','))}.",
                "Move it away, or choose another folder.",
            )

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row, and wait until the disk has it.

        Args:
            row: column -> value; what is missing stays empty.
        """
        line = self._line(row)
        with storing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                new = file.tell() == 0
                head = self._line(dict(zip(self.columns, self.columns, strict=True))) if new else ""
                file.write((head + line).encode())
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync_folder(self.path.parent)

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _line(self, row: Mapping[str, object]) -> str:
        text = io.StringIO(newline="")
        csv.writer(text).writerow([_text(row.get(name, "")) for name in self.columns])
        return text.getvalue()


def _text(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
