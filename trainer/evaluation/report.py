"""An evaluation as pictures, tables and one HTML page."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..disk.files import write_bytes
from ..disk.sequence import digest
from ..images import mosaic
from ..plots import heat_map, image_grid, line_chart
from ..report import Figure, Heading, Paragraph, Section, Table, write_report
from .evaluate import Evaluation
from .fisher_spectrum import Spectrum
from .pictures import read_cell
from .record import write_record
from .scores import CELL_METRICS, SEQUENCE_METRICS

THUMBNAIL = 192
MEANINGS = {
    "a_mmd": "distance to the real images at the end, lower is better",
    "f_mmd": "forgetting: how far the images moved since their own task, lower is better",
    "bwt_mmd": "backward transfer: below 0 later tasks did harm",
    "new_mmd": "distance to the real images right after the own task, lower is better",
    "kid": "KID at the end, lower is better",
    "i2i": "mean cosine of generated and real images at the end, x 100, higher is better",
    "t2i": "mean cosine of generated images and their prompt at the end, x 100, higher is better",
    "dc_accuracy": "share of the training images that the diffusion classifier puts under their own concept at the end",
}


def contact_sheet(evaluation: Evaluation) -> Image.Image:
    """Rows: real images, then after each task; columns: concepts."""
    line, tasks = evaluation.line, evaluation.line.tasks
    rows: list[list[Image.Image | None]] = [[mosaic(line.images(task), THUMBNAIL) for task in tasks]]
    for i in range(len(tasks)):
        drawn = [mosaic(read_cell(line, evaluation.artist, i, j), THUMBNAIL) for j in range(i + 1)]
        rows.append([*drawn, *[None] * (len(tasks) - i - 1)])
    return image_grid(rows, ["real", *_rows(evaluation)], _names(evaluation), cell=THUMBNAIL)


def forgetting_map(evaluation: Evaluation) -> Image.Image:
    """score_table[i, j]: MMD between the real images of concept j and those drawn after task i."""
    table = evaluation.scores.table("mmd", len(evaluation.line.tasks))
    return heat_map(table, _rows(evaluation), _names(evaluation), f"MMD, {evaluation.scores.encoder}")


def curves(evaluation: Evaluation) -> Image.Image:
    """One line for each concept: its MMD after each task, from its own on."""
    table = evaluation.scores.table("mmd", len(evaluation.line.tasks))
    lines = {
        name: [float("nan") if row[j] is None else float(row[j] or 0) for row in table]
        for j, name in enumerate(_names(evaluation))
    }
    return line_chart(lines, f"Distance to the real images, {evaluation.scores.encoder}", "task", "MMD")


def markdown_table(evaluation: Evaluation) -> str:
    """The figures of the sequence, then those of each concept after each task."""
    figures = [f"| {name} | {value:.4g} | {meaning} |" for name, value, meaning in _figures(evaluation)]
    head = ["after", "concept", *CELL_METRICS, "dc_accuracy"]
    cells = [f"| {' | '.join('' if v is None else _text(v) for v in row)} |" for row in _cells(evaluation)]
    return "\n".join(
        [
            f"Features: {evaluation.scores.encoder}",
            "",
            "| figure | value | meaning |",
            "|---|---|---|",
            *figures,
            "",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *cells,
            "",
        ]
    )


def write_evaluation(evaluation: Evaluation) -> Path:
    """Write table.csv, table.md, report.html and evaluation.json; the same evaluation goes to the same folder.

    Returns:
        The folder, below the sequence's `evaluation/reports`.
    """
    line, encoder = evaluation.line, evaluation.scores.encoder
    parts = {"encoder": encoder, "classifier": bool(evaluation.accuracies), "spectrum": bool(evaluation.spectra)}
    which = digest({**parts, **evaluation.artist.how})[:12]
    folder = line.root / "evaluation" / "reports" / f"{line.tasks[-1].folder}-{which}"
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["encoder", "after_task", "after", "concept_index", "concept", *CELL_METRICS, "dc_accuracy"])
    for (i, j), row in zip(sorted(evaluation.scores.cells), _cells(evaluation), strict=True):
        writer.writerow([encoder, i + 1, row[0], j + 1, *row[1:]])
    write_bytes(folder / "table.csv", table.getvalue().encode())
    write_bytes(folder / "table.md", markdown_table(evaluation).encode())
    write_report(folder / "report.html", f"{line.root.name}: what was kept", _sections(evaluation))
    write_record(folder, evaluation)
    return folder


def _sections(evaluation: Evaluation) -> list[Section]:
    encoder, names = evaluation.scores.encoder, _names(evaluation)
    how = ", ".join(f"{name} {value}" for name, value in evaluation.artist.how.items())
    sections: list[Section] = [
        Paragraph(f"{len(names)} concepts, taught with {_recipes(evaluation)}. Features: {encoder}. Images: {how}."),
        Figure(contact_sheet(evaluation), "Real images, then what the model draws of each concept after each task."),
        Heading("What was kept"),
        Table(["figure", "value", "meaning"], [list(row) for row in _figures(evaluation)]),
        Figure(forgetting_map(evaluation), "Rows: after each task. Lower is better; a column shows one concept."),
        Figure(curves(evaluation), "A rising line is a concept that is being forgotten."),
        Table(["after", "concept", *CELL_METRICS, "dc_accuracy"], [list(row) for row in _cells(evaluation)]),
    ]
    if evaluation.accuracies:
        count = len(names)
        table = [[evaluation.accuracies.get((i, j)) for j in range(count)] for i in range(count)]
        sections += [
            Heading("Does the model tell its concepts apart?"),
            Figure(
                heat_map(table, _rows(evaluation), names, "Diffusion classifier accuracy", (0.0, 1.0)),
                "Share of each concept's training images whose own prompt explains them best. Higher is better.",
            ),
        ]
    if evaluation.spectra:
        sections.append(Heading("Fisher information of the newest task"))
        for layer in next(iter(evaluation.spectra.values())):
            of_layer = {objective: spectra[layer] for objective, spectra in evaluation.spectra.items()}
            sections += [
                Figure(spectrum_chart(of_layer, layer), "The larger, the stiffer. Both from the same draws."),
                Figure(diagonal_chart(of_layer, layer), "What EWC knows of it: its diagonal, from the same draws."),
                Table(
                    ["objective", "trace", "largest eigenvalue", "its share", "largest of the diagonal"],
                    [[name, *_numbers(spectrum)] for name, spectrum in of_layer.items()],
                ),
            ]
    return sections


def spectrum_chart(spectra: dict[str, Spectrum], layer: str) -> Image.Image:
    """Log10 of a layer's eigenvalues, the largest first, one line for each objective; zeros are left out."""
    lines = {objective: _log10(spectrum.eigenvalues) for objective, spectrum in spectra.items()}
    return line_chart(lines, layer, "eigenvalue, the largest first", "log10")


def diagonal_chart(spectra: dict[str, Spectrum], layer: str) -> Image.Image:
    """Log10 of the sorted diagonal of a layer, one line for each objective, at each hundredth of its parameters."""
    lines = {objective: _log10(at_each_hundredth(spectrum.diagonal)) for objective, spectrum in spectra.items()}
    return line_chart(lines, layer, "percent of the parameters, the largest first", "log10")


def at_each_hundredth(values: Tensor) -> Tensor:
    """The last of the first 1 %, 2 %, ... 100 % of sorted values, [P] to [100]: a layer may have a million."""
    return values[(torch.arange(1, 101) * len(values) + 99) // 100 - 1]


def _log10(values: Tensor) -> list[float]:
    # What is 1e-12 of the largest is rounding.
    kept = values[values > values[0] * 1e-12]
    return torch.log10(kept).tolist()


def _numbers(spectrum: Spectrum) -> list[float]:
    trace, largest = float(spectrum.eigenvalues.sum()), float(spectrum.eigenvalues[0])
    return [trace, largest, largest / trace if trace else 0.0, float(spectrum.diagonal[0])]


def _figures(evaluation: Evaluation) -> list[tuple[str, float, str]]:
    """(name, value, meaning), a line each; MMD unsquared and squared."""
    values = dict(evaluation.scores.values)
    last = len(evaluation.line.tasks) - 1
    at_the_end = [value for (i, _), value in evaluation.accuracies.items() if i == last]
    if at_the_end:
        values["dc_accuracy"] = sum(at_the_end) / len(at_the_end)
    order: Iterable[str] = [name + suffix for suffix in ("", "_squared") for name in SEQUENCE_METRICS]
    order = [*order, "kid", "i2i", "t2i", "dc_accuracy"]
    return [(name, values[name], MEANINGS[name.removesuffix("_squared")]) for name in order if name in values]


def _cells(evaluation: Evaluation) -> list[list[str | float | None]]:
    names, scores = _names(evaluation), evaluation.scores.cells
    return [
        [names[i], names[j], *(scores[i, j].get(m) for m in CELL_METRICS), evaluation.accuracies.get((i, j))]
        for i, j in sorted(scores)
    ]


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _names(evaluation: Evaluation) -> list[str]:
    return [task.concept for task in evaluation.line.tasks]


def _rows(evaluation: Evaluation) -> list[str]:
    return [f"after {name}" for name in _names(evaluation)]


def _recipes(evaluation: Evaluation) -> str:
    return ", ".join(dict.fromkeys(task.recipe for task in evaluation.line.tasks))
