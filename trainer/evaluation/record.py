"""An evaluation as data: its numbers and where the pictures behind each of them are, for pages that show them.

<sequence>/evaluation/reports/<newest task>-<digest of how>/evaluation.json, beside the report
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk.files import write_json
from ..disk.names import check_file_name, is_text, shown
from ..disk.sequence import ConceptSequence
from ..errors import ContinualLoraError
from ..overview import MOST_IMAGES, below, listed_images
from .evaluate import Evaluation
from .pictures import cell_folder
from .scores import CELL_METRICS

RECORD = "evaluation.json"
METRICS = (*CELL_METRICS, "dc_accuracy")


@dataclass(frozen=True)
class Record:
    """A record on disk, checked.

    Attributes:
        name: of its folder below `evaluation/reports`.
        line: the tasks that were evaluated.
        encoder: whose features; every number but those of the diffusion classifier depends on it.
        written: in seconds since 1970.
        cells: (i, j) -> its folder and its numbers, concept j after task i, 1-based.
    """

    name: str
    line: ConceptSequence
    encoder: str
    written: float
    cells: dict[tuple[int, int], dict[str, Any]]


def write_record(folder: Path, evaluation: Evaluation) -> None:
    """Write evaluation.json into the folder of a report."""
    line, tasks = evaluation.line, evaluation.line.tasks
    cells = []
    for (i, j), scores in sorted(evaluation.scores.cells.items()):
        pictures = cell_folder(line, tasks[i], tasks[j], evaluation.artist).relative_to(line.root)
        accuracy = {"dc_accuracy": evaluation.accuracies[i, j]} if (i, j) in evaluation.accuracies else {}
        cells.append(
            {"after_task": i + 1, "concept_index": j + 1, "pictures": pictures.as_posix(), **scores, **accuracy}
        )
    record = {"head": line.head, "encoder": evaluation.scores.encoder, "how": dict(evaluation.artist.how)}
    write_json(folder / RECORD, record | {"cells": cells})


def read_record(line: ConceptSequence, name: str) -> Record:
    """The evaluation in a folder below `evaluation/reports`.

    Raises:
        ContinualLoraError: there is none, it is damaged, or the sequence does not hold its newest task.
    """
    path = below(line.root, "evaluation", "reports", check_file_name(name, "evaluation"), RECORD)
    if not path.is_file():
        raise ContinualLoraError(
            f'"{line.root.name}" should hold the evaluation {shown(name)}.',
            f"There is no {RECORD} of it.",
            "Run Evaluate Concept Sequence again.",
        )
    stored = _stored(path)
    evaluated = ConceptSequence.open(line.root, stored["head"])
    return Record(
        name,
        evaluated,
        stored["encoder"],
        path.stat().st_mtime,
        {(cell["after_task"], cell["concept_index"]): cell for cell in stored["cells"]},
    )


def newest_record(line: ConceptSequence) -> Record | None:
    """The evaluation that was written last, of this line or of its beginning; None if there was none."""
    reports = line.root / "evaluation" / "reports"
    keys = {task.key for task in line.tasks}
    for path in sorted(reports.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _stored(below(line.root, "evaluation", "reports", path.parent.name, RECORD))["head"] in keys:
            return read_record(line, path.parent.name)
    return None


def record_rows(record: Record, first: int, count: int) -> list[dict[str, Any]]:
    """The rows after the tasks number `first` to `first + count - 1`, each with its cells and their pictures."""
    tasks = record.line.tasks[first - 1 : first - 1 + count]
    return [
        {
            "after_task": task.index,
            "concept": task.concept,
            "token": task.token,
            "folder": task.folder,
            "real_images": listed_images(record.line.root, f"tasks/{task.folder}/images")[:MOST_IMAGES],
            "cells": [_cell(record, task.index, j) for j in range(1, task.index + 1)],
        }
        for task in tasks
    ]


def _cell(record: Record, i: int, j: int) -> dict[str, Any] | None:
    """None where nothing was measured; a number that is none (of a metric without a value) is left out."""
    stored = record.cells.get((i, j))
    if stored is None:
        return None
    images = listed_images(record.line.root, stored["pictures"])
    numbers = {name: stored[name] for name in METRICS if math.isfinite(stored.get(name, math.nan))}
    return {"concept_index": j, "num_images": len(images), "images": images[:MOST_IMAGES], "scores": numbers}


def _stored(path: Path) -> dict[str, Any]:
    """The JSON of a record, held to its form."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"It cannot be read: {error}.") from error
    texts = ("head", "encoder")
    if not isinstance(stored, Mapping) or not all(_is_text(stored.get(name)) for name in texts):
        raise _damaged(path, f"It holds no {' and no '.join(texts)}.")
    cells = stored.get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, Mapping) and _is_cell(cell) for cell in cells):
        raise _damaged(path, "Its cells are others than an evaluation writes.")
    return dict(stored)


def _is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and is_text(value)


def _is_cell(cell: Mapping[str, Any]) -> bool:
    numbers: Iterable[Any] = (cell[name] for name in METRICS if name in cell)
    places = (cell.get("after_task"), cell.get("concept_index"))
    return (
        _is_text(cell.get("pictures"))
        and all(type(place) is int for place in places)
        and all(type(number) is float for number in numbers)
    )


def _damaged(path: Path, came: str) -> ContinualLoraError:
    return ContinualLoraError(
        f"`{path}` should be as an evaluation wrote it.", came, "Run Evaluate Concept Sequence again, or delete it."
    )
