"""The numbers about a sequence's images: one table of cells, and the metrics of the whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..disk.sequence import ConceptSequence
from ..metrics import (
    a_mmd,
    bwt_mmd,
    f_mmd,
    image_similarity,
    kid,
    mmd,
    new_mmd,
    text_similarity,
)
from ..metrics.features import FeatureEncoder, TextImageEncoder
from .pictures import Artist, read_cell

# One figure for a cell: real images against those drawn of the concept. Up to KID lower is better.
CELL_METRICS = ("mmd", "mmd_squared", "kid", "i2i", "t2i")
# One figure for the sequence.
SEQUENCE_METRICS = ("a_mmd", "f_mmd", "bwt_mmd", "new_mmd")


@dataclass(frozen=True)
class Scores:
    """What was measured.

    Attributes:
        encoder: whose features; every number but those of the diffusion classifier depends on it.
        cells: (i, j) -> metric -> value, concept j after task i, 0-based.
        values: figures of the whole sequence by name; those of MMD also as `<name>_squared`.
    """

    encoder: str
    cells: dict[tuple[int, int], dict[str, float]]
    values: dict[str, float]

    def table(self, metric: str, num_tasks: int) -> list[list[float | None]]:
        """Row i: after task i; column j: concept j; None where nothing was measured."""
        return [[self.cells.get((i, j), {}).get(metric) for j in range(num_tasks)] for i in range(num_tasks)]


def measure(line: ConceptSequence, artist: Artist, cells: list[tuple[int, int]], encoder: FeatureEncoder) -> Scores:
    """Measure drawn cells.

    Args:
        line: the sequence, which holds the real images.
        artist: who drew.
        cells: at least those of `first_and_last_cells`.
        encoder: turns images into features.
    """
    tasks = line.tasks
    real = [encoder(line.images(task)) for task in tasks]
    drawn = {cell: encoder(read_cell(line, artist, *cell)) for cell in cells}
    texts = [_text_features(encoder, task.prompt, task.token) for task in tasks]
    measured = {(i, j): measure_cell(real[j], features, texts[j]) for (i, j), features in drawn.items()}
    last = len(tasks) - 1
    # Only each concept's own turn and the last row enter these metrics; what lies between may be missing.
    generated = [[drawn.get((i, j), drawn[j, j]) for j in range(i + 1)] for i in range(len(tasks))]
    values = {
        name + suffix: float(function(real, generated, squared=bool(suffix)))
        for name, function in zip(SEQUENCE_METRICS, (a_mmd, f_mmd, bwt_mmd, new_mmd), strict=True)
        for suffix in ("", "_squared")
    }
    at_the_end = [measured[last, j] for j in range(last + 1)]
    for name in ("kid", "i2i", "t2i"):
        if all(name in cell for cell in at_the_end):
            values[name] = sum(cell[name] for cell in at_the_end) / len(at_the_end)
    return Scores(encoder.name, measured, values)


def measure_cell(real: Tensor, drawn: Tensor, text: Tensor | None) -> dict[str, float]:
    """The figures of one cell; without a text feature no T2I, with a single image on a side no KID."""
    distance = float(mmd(real, drawn))
    values = {"mmd": distance, "mmd_squared": distance**2, "i2i": float(image_similarity(real, drawn))}
    if min(len(real), len(drawn)) > 1:
        values["kid"] = float(kid(real, drawn))
    if text is not None:
        values["t2i"] = float(text_similarity(text, drawn))
    return values


def prompt_without_token(prompt: str, token: str) -> str:
    """The prompt that T2I compares with: the new word taken out."""
    return " ".join(prompt.replace(f"<{token}>", " ").split())


def _text_features(encoder: FeatureEncoder, prompt: str, token: str) -> Tensor | None:
    if not isinstance(encoder, TextImageEncoder):
        return None
    with torch.no_grad():
        return encoder.encode_text(prompt_without_token(prompt, token))
