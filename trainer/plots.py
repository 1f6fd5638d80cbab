"""Charts drawn with Pillow, which the host brings; it brings no plotting library."""

import math
from collections.abc import Mapping, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]

# Okabe and Ito's colors, told apart by every kind of color vision, the best readable on white first.
PALETTE: tuple[RGB, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (90, 90, 90),
)
PAPER, INK, FAINT, GRID, EMPTY = (255, 255, 255), (34, 38, 43), (105, 112, 120), (226, 229, 233), (243, 244, 246)
LOW, HIGH = (235, 243, 250), (8, 64, 129)  # ends of the heat map's scale
MARGIN, FONT_SIZE, TITLE_SIZE, WIDEST_TITLE = 20, 13, 17, 640
CELL, GAP = 128, 6  # of a grid of pictures
BAR_HEIGHT, BAR_STEP, BAR_LENGTH, LABEL_WIDTH, THUMBNAIL = 16, 24, 320, 170, 96
PLOT_LEFT, PLOT_WIDTH, PLOT_HEIGHT, LINE_WIDTH = 76, 600, 280, 2
CELL_WIDTH, CELL_HEIGHT, TEXT_HEIGHT = 84, 34, 22


@cache
def _font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def shorten(text: str, width: float, size: int = FONT_SIZE) -> str:
    """One line of `text` that is at most `width` pixels wide, cut with an ellipsis."""
    line, font = " ".join(text.split()), _font(size)
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line.rstrip() + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _label_width(labels: Sequence[str]) -> int:
    """Pixels that a column of labels takes with the space behind it; 0 without labels."""
    return math.ceil(min(LABEL_WIDTH, 10 + max((_font().getlength(" ".join(x.split())) for x in labels), default=-10)))


class _Sheet:
    """A white picture with its title, and text that fits."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.top = MARGIN + (TITLE_SIZE + 15 if title else 0)
        width = max(width, min(WIDEST_TITLE, _font(TITLE_SIZE).getlength(title)) + 2 * MARGIN)
        self.image = Image.new("RGB", (round(width), round(height) + self.top), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.text(MARGIN, MARGIN + TITLE_SIZE / 2 - 2, title, width - 2 * MARGIN, anchor="lm", size=TITLE_SIZE)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        width: float = math.inf,
        *,
        anchor: str = "mm",
        color: RGB = INK,
        size: int = FONT_SIZE,
    ) -> None:
        self.draw.text((x, y), shorten(text, width, size), color, _font(size), anchor)


def bar_chart(labels: Sequence[str], values: Sequence[float], title: str = "") -> Image.Image:
    """Horizontal bars for values [K] in 0..1, the longest emphasized."""
    return bar_chart_grid(labels, [values], title)


def bar_chart_grid(
    labels: Sequence[str],
    rows: Sequence[Sequence[float]],
    title: str = "",
    thumbnails: Sequence[Image.Image] = (),
) -> Image.Image:
    """One block of bars for each image.

    Args:
        labels: the K names.
        rows: [B, K] in 0..1, for example probabilities.
        title: stands above everything.
        thumbnails: the B images, or none.
    """
    left = MARGIN + (THUMBNAIL + MARGIN if thumbnails else 0)
    block = max(len(labels) * BAR_STEP, THUMBNAIL if thumbnails else 0) + MARGIN
    sheet = _Sheet(left + _label_width(labels) + BAR_LENGTH + 60 + MARGIN, len(rows) * block, title)
    for index, values in enumerate(rows):
        top = sheet.top + index * block
        if thumbnails:
            picture = fitted(thumbnails[index], THUMBNAIL)
            sheet.image.paste(picture, (MARGIN + (THUMBNAIL - picture.width) // 2, top))
        _bars(sheet, left, top, labels, values)
    return sheet.image


def _bars(sheet: _Sheet, left: float, top: float, labels: Sequence[str], values: Sequence[float]) -> None:
    start, height = left + _label_width(labels), len(labels) * BAR_STEP
    for tick in range(5):
        x = start + tick * BAR_LENGTH / 4
        sheet.draw.line((x, top, x, top + height - 1), GRID)
    best = max(filter(math.isfinite, values), default=math.nan)
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = top + (index + 0.5) * BAR_STEP
        length = round(BAR_LENGTH * min(1.0, max(0.0, value))) if math.isfinite(value) else 0
        color = PALETTE[0] if value == best else PALETTE[5]
        sheet.text(start - 10, middle, label, start - left - 10, anchor="rm")
        if length:
            box = (start, middle - BAR_HEIGHT / 2, start + length - 1, middle + BAR_HEIGHT / 2 - 1)
            sheet.draw.rectangle(box, color)
        sheet.text(start + length + 8, middle, f"{value:.3f}", anchor="lm", color=INK if value == best else FAINT)


def line_chart(
    series: Mapping[str, Sequence[float]], title: str = "", x_label: str = "", y_label: str = ""
) -> Image.Image:
    """Lines through the points (1, v_1), (2, v_2), ... of each series; a value that is not finite leaves a gap."""
    longest = max([2, *map(len, series.values())])
    finite = [value for values in series.values() for value in values if math.isfinite(value)] or [0.0, 1.0]
    x_ticks = [x for x in ticks(1, longest) if x == int(x) and 1 <= x <= longest]
    y_ticks = ticks(min(finite), max(finite))
    legend = TEXT_HEIGHT if len(series) > 1 else 0
    sheet = _Sheet(PLOT_LEFT + PLOT_WIDTH + 2 * MARGIN, legend + PLOT_HEIGHT + 3 * TEXT_HEIGHT + MARGIN, title)
    _legend(sheet, list(series) if legend else [])
    top, right = sheet.top + legend + TEXT_HEIGHT, PLOT_LEFT + PLOT_WIDTH
    bottom = top + PLOT_HEIGHT

    def across(x: float) -> float:
        return PLOT_LEFT + (x - 1) / (longest - 1) * PLOT_WIDTH

    def down(y: float) -> float:
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * PLOT_HEIGHT

    for y in y_ticks:
        sheet.draw.line((PLOT_LEFT, down(y), right, down(y)), GRID)
        sheet.text(PLOT_LEFT - 8, down(y), f"{y:g}", PLOT_LEFT - MARGIN, anchor="rm", color=FAINT)
    for x in x_ticks:
        sheet.draw.line((across(x), bottom, across(x), bottom + 4), FAINT)
        sheet.text(across(x), bottom + 15, f"{x:g}", color=FAINT)
    sheet.text(MARGIN, top - 16, y_label, PLOT_WIDTH, anchor="lm", color=FAINT)
    sheet.text(right, bottom + 37, x_label, PLOT_WIDTH, anchor="rm", color=FAINT)
    for index, values in enumerate(series.values()):
        points = [(across(x), down(y) if math.isfinite(y) else None) for x, y in enumerate(values, start=1)]
        _curve(sheet.image, points, PALETTE[index % len(PALETTE)])
    return sheet.image


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers at equal distances, from the first at or below `low` to the last at or above `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    power = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = power * next(factor for factor in (1, 2, 5, 10) if power * factor >= (high - low) / 5 * 0.999)
    return [step * k for k in range(math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6) + 1)]


def _legend(sheet: _Sheet, names: Sequence[str]) -> None:
    x, y, room = float(PLOT_LEFT), sheet.top + 6, PLOT_WIDTH / max(1, len(names))
    for index, name in enumerate(names):
        short = shorten(name, room - 44)
        sheet.draw.rectangle((x, y - 2, x + 16, y + 1), PALETTE[index % len(PALETTE)])
        sheet.text(x + 24, y, short, anchor="lm")
        x += 44 + _font().getlength(short)


def _curve(image: Image.Image, points: Sequence[tuple[float, float | None]], color: RGB) -> None:
    """A smooth line, drawn four times as large and reduced; a point without y breaks it."""
    mask, scale = Image.new("L", (image.width * 4, image.height * 4)), 4
    draw = ImageDraw.Draw(mask)
    piece: list[tuple[float, float]] = []
    for x, y in [*points, (0.0, None)]:
        if y is not None:
            piece.append(((x + 0.5) * scale, (y + 0.5) * scale))
        elif piece:
            draw.line(piece, 255, LINE_WIDTH * scale, joint="curve")
            if len(piece) == 1:
                draw.circle(piece[0], LINE_WIDTH * scale, 255)
            piece = []
    image.paste(color, mask=mask.reduce(scale))


def heat_map(
    table: Sequence[Sequence[float | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
    scale: tuple[float, float] | None = None,
) -> Image.Image:
    """Numbers on a scale from light to dark, by default the smallest and the largest; None and NaN stay empty."""
    known = [value for row in table for value in row if value is not None and math.isfinite(value)] or [0.0]
    low, high = scale or (min(known), max(known))
    span = (high - low) or 1.0
    left = MARGIN + _label_width(row_labels)
    height = TEXT_HEIGHT + len(row_labels) * CELL_HEIGHT + MARGIN
    sheet = _Sheet(left + len(column_labels) * CELL_WIDTH + MARGIN, height, title)
    for column, label in enumerate(column_labels):
        sheet.text(left + (column + 0.5) * CELL_WIDTH, sheet.top + 8, label, CELL_WIDTH - 8)
    for row, (label, values) in enumerate(zip(row_labels, table, strict=True)):
        y = sheet.top + TEXT_HEIGHT + row * CELL_HEIGHT
        sheet.text(left - 10, y + CELL_HEIGHT / 2 - 1, label, left - MARGIN - 10, anchor="rm")
        for column, value in enumerate(values):
            x = left + column * CELL_WIDTH
            empty = value is None or not math.isfinite(value)
            share = 0.0 if value is None or empty else (value - low) / span
            color = EMPTY if empty else _between(LOW, HIGH, share)
            sheet.draw.rectangle((x, y, x + CELL_WIDTH - 3, y + CELL_HEIGHT - 3), color)
            if not empty:
                ink = PAPER if share > 0.5 else INK
                sheet.text(x + CELL_WIDTH / 2 - 1, y + CELL_HEIGHT / 2 - 1, f"{value:.3g}", color=ink)
    return sheet.image


def _between(low: RGB, high: RGB, share: float) -> RGB:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def image_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    *,
    cell: int = CELL,
    captions: Sequence[Sequence[str]] = (),
) -> Image.Image:
    """Pictures side by side, each fitted into `cell` x `cell` pixels, with captions under them if there are any."""
    left, gap = MARGIN + _label_width(row_labels), GAP
    step = cell + gap + (TEXT_HEIGHT if captions else 0)
    head = TEXT_HEIGHT if column_labels else 0
    num_columns = max(map(len, rows), default=0)
    sheet = _Sheet(left + num_columns * (cell + gap) - gap + MARGIN, head + len(rows) * step - gap + MARGIN, title)
    for column, label in enumerate(column_labels):
        sheet.text(left + column * (cell + gap) + cell / 2, sheet.top + 6, label, cell)
    for row, pictures in enumerate(rows):
        y = sheet.top + head + row * step
        if row_labels:
            sheet.text(left - 10, y + cell / 2, row_labels[row], left - MARGIN - 10, anchor="rm")
        for column, picture in enumerate(pictures):
            x = left + column * (cell + gap)
            if picture is not None:
                small = fitted(picture, cell)
                sheet.image.paste(small, (x + (cell - small.width) // 2, y + (cell - small.height) // 2))
            if captions:
                sheet.text(x + cell / 2, y + cell + 10, captions[row][column], cell, color=FAINT)
    return sheet.image


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The image on white, as large as fits into a square; a whole multiple keeps its pixels sharp."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    sharp = scale >= 1 and scale == int(scale)
    rgba = image.convert("RGBA").resize(size, Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", size, PAPER), rgba).convert("RGB")
