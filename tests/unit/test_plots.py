"""Charts, measured in pixels."""

import math

import numpy as np
import pytest
from PIL import Image

from trainer import plots


def mask_of(image, color, tolerance=0):
    """Where the picture has a color, [H, W]."""
    return (np.abs(np.asarray(image).astype(int) - color).max(axis=-1) <= tolerance).astype(bool)


def runs_of(image, colors):
    """(row, length) of the bars from the top: the longest run of color in each band of rows."""
    mask = np.any([mask_of(image, color) for color in colors], axis=0)
    lengths = mask.sum(axis=1)
    starts = [y for y in range(1, len(lengths)) if lengths[y] > 0 and lengths[y - 1] == 0]
    return [int(lengths[y + 5]) for y in starts]


# Bars


def test_bar_lengths_are_proportional_to_the_values():
    image = plots.bar_chart(["a", "b", "c", "d"], [0.1, 0.5, 1.0, 0.25], "Title")
    assert runs_of(image, plots.PALETTE) == [32, 160, 320, 80]


def test_only_the_longest_bar_is_emphasized():
    image = plots.bar_chart(["a", "b"], [0.25, 0.75])
    assert runs_of(image, [plots.PALETTE[0]]) == [240]
    assert runs_of(image, [plots.PALETTE[5]]) == [80]


def test_values_out_of_range_stay_in_the_chart():
    image = plots.bar_chart(["a", "b", "c", "d"], [1.5, -1.0, math.nan, 0.5])
    assert runs_of(image, plots.PALETTE) == [320, 160]


def test_a_bar_carries_its_number():
    # The same chart without the digits differs only where they stand: behind the bar, in its row.
    one, other = (np.asarray(plots.bar_chart(["a"], [value])) for value in (0.5, 0.5004))
    assert np.array_equal(one, other)  # both are 0.500, 160 pixels
    changed = np.argwhere((one != np.asarray(plots.bar_chart(["a"], [0.501]))).any(axis=-1))
    start = plots.MARGIN + plots._label_width(["a"]) + 160
    assert changed[:, 1].min() > start


def test_grid_draws_a_block_for_each_image_beside_its_thumbnail():
    rows = [[0.25, 0.75], [1.0, 0.5], [0.125, 0.0]]
    thumbnails = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "yellow")]
    image = plots.bar_chart_grid(["a", "b"], rows, "Title", thumbnails)
    assert runs_of(image, plots.PALETTE) == [80, 240, 320, 160, 40]
    tops = []
    for color in ((255, 0, 0), (0, 255, 0), (255, 255, 0)):
        ys, xs = np.nonzero(mask_of(image, color))
        assert len(ys) == plots.THUMBNAIL**2 and xs.min() == plots.MARGIN
        tops.append(int(ys.min()))
    assert tops[1] - tops[0] == tops[2] - tops[1] == plots.THUMBNAIL + plots.MARGIN


# Lines


def axes_of(image):
    """Pixel box (left, top, right, bottom) of the plot: the first and last grid line."""
    ys, xs = np.nonzero(mask_of(image, plots.GRID))
    return xs.min(), ys.min(), xs.max(), ys.max()


def test_line_passes_through_its_points():
    values = [0.0, 1.0, 0.25, 0.75, 0.5]
    image = plots.line_chart({"loss": values}, "Title", "step", "loss")
    left, top, right, bottom = axes_of(image)
    assert right - left == plots.PLOT_WIDTH and bottom - top == plots.PLOT_HEIGHT
    line = mask_of(image, plots.PALETTE[0], tolerance=60)
    for index, value in enumerate(values):
        x, y = left + index / 4 * plots.PLOT_WIDTH, bottom - value * plots.PLOT_HEIGHT
        near = line[round(y) - 3 : round(y) + 4, max(0, round(x) - 3) : round(x) + 4]
        assert near.any(), (index, value)
    # Half-way between two points the line is at their mean, and only there.
    column = np.nonzero(line[:, round(left + plots.PLOT_WIDTH / 8)])[0]
    assert abs(column.mean() - (bottom - 0.5 * plots.PLOT_HEIGHT)) < 2
    assert np.ptp(column) < 12


def test_each_series_has_its_color_and_a_legend():
    image = plots.line_chart({"a": [0.0, 0.0], "b": [1.0, 1.0]})
    heights = [np.nonzero(mask_of(image, color).sum(axis=1) > 500)[0].mean() for color in plots.PALETTE[:2]]
    assert heights[0] - heights[1] == pytest.approx(plots.PLOT_HEIGHT, abs=2)
    for color in plots.PALETTE[:2]:
        assert mask_of(image, color)[: plots.MARGIN + plots.TEXT_HEIGHT].sum() == 17 * 4  # its swatch
    assert not mask_of(plots.line_chart({"a": [1.0, 2.0]}), plots.PALETTE[0])[: plots.MARGIN + 10].any()


def test_a_value_that_is_not_finite_leaves_a_gap():
    image = plots.line_chart({"a": [0.5, 0.5, math.nan, 0.5, math.inf, 0.5]})
    left = axes_of(image)[0]
    line = mask_of(image, plots.PALETTE[0], tolerance=60).any(axis=0)
    assert line[left + plots.PLOT_WIDTH // 10]
    assert not line[left + round(plots.PLOT_WIDTH * 0.3)]
    assert line[left + round(plots.PLOT_WIDTH * 0.6)]  # a single point between two gaps is a dot
    assert not line[left + round(plots.PLOT_WIDTH * 0.7)]


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [1.0]}, {"a": [3.0, 3.0]}, {"a": [math.nan]}])
def test_line_chart_of_almost_nothing(series):
    image = plots.line_chart(series, "Title")
    left, top, right, bottom = axes_of(image)
    assert (right - left, bottom - top) == (plots.PLOT_WIDTH, plots.PLOT_HEIGHT)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.03, 0.48, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (-349.0, -46.0, [-400, -300, -200, -100, 0]),
        (1, 2000, [0, 500, 1000, 1500, 2000]),
        (2.0, 2.0, [1, 1.5, 2, 2.5, 3]),
        (0.0, 0.0, [-0.5, 0, 0.5]),
    ],
)
def test_ticks_are_round_and_span_the_values(low, high, expected):
    result = plots.ticks(low, high)
    step = result[1] - result[0]
    assert result[0] <= low and result[-1] >= high and 3 <= len(result) <= 8
    assert round(step / 10 ** math.floor(math.log10(step * 1.0001)), 6) in (1, 2, 5)
    if len(expected) > 3:
        assert result == pytest.approx(expected)


# Heat map


def cells_of(image, rows, columns, left):
    """The color in the upper left corner of each cell."""
    top = image.height - plots.MARGIN - rows * plots.CELL_HEIGHT
    at = lambda row, column: (left + column * plots.CELL_WIDTH + 3, top + row * plots.CELL_HEIGHT + 3)  # noqa: E731
    return [[image.getpixel(at(row, column)) for column in range(columns)] for row in range(rows)]


def test_heat_map_colors_are_ordered_and_missing_cells_empty():
    labels = ["after fox", "after owl"]
    image = plots.heat_map([[0.3, None, 0.1], [0.5, 0.2, math.nan]], labels, ["x", "y", "z"], "MMD")
    left = plots.MARGIN + plots._label_width(labels)
    (c3, none, c1), (c5, c2, nan) = cells_of(image, 2, 3, left)
    assert none == nan == plots.EMPTY
    assert c1 == plots.LOW and c5 == plots.HIGH
    assert c3 == tuple(round((a + b) / 2) for a, b in zip(plots.LOW, plots.HIGH, strict=True))  # half-way
    assert sum(c1) > sum(c2) > sum(c3) > sum(c5)


def test_heat_map_numbers_are_readable_on_every_cell():
    image = np.asarray(plots.heat_map([[0.0, 1.0]], ["a"], ["x", "y"]).convert("L")).astype(int)
    left, top = plots.MARGIN + plots._label_width(["a"]), image.shape[0] - plots.MARGIN - plots.CELL_HEIGHT
    for column in range(2):
        cell = image[top + 1 : top + 30, left + column * plots.CELL_WIDTH + 1 :][:, :80]
        assert np.ptp(cell) > 120


@pytest.mark.parametrize("table", [[[None]], [[0.5]], [[0.5, 0.5], [0.5, 0.5]]])
def test_heat_map_without_a_span(table):
    image = plots.heat_map(table, ["a"] * len(table), ["x"] * len(table[0]))
    expected = plots.EMPTY if table[0][0] is None else plots.LOW
    left = plots.MARGIN + plots._label_width(["a"])
    assert cells_of(image, len(table), len(table[0]), left)[0][0] == expected


def test_heat_map_on_a_given_scale():
    image = plots.heat_map([[0.5, 1.0]], ["a"], ["x", "y"], scale=(0.0, 1.0))
    (half, whole), *_ = cells_of(image, 1, 2, plots.MARGIN + plots._label_width(["a"]))
    assert half == tuple(round((a + b) / 2) for a, b in zip(plots.LOW, plots.HIGH, strict=True))
    assert whole == plots.HIGH


# Images


def test_image_grid_places_each_picture():
    red, green = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (32, 64), "lime")
    image = plots.image_grid([[red, None], [None, green]], ["one", "two"], ["x", "y"], "Title")
    ys, xs = np.nonzero(mask_of(image, (255, 0, 0)))
    assert (np.ptp(xs) + 1, np.ptp(ys) + 1) == (128, 128)
    green_ys, green_xs = np.nonzero(mask_of(image, (0, 255, 0)))
    assert (np.ptp(green_xs) + 1, np.ptp(green_ys) + 1) == (64, 128)  # aspect kept, centered
    assert green_xs.min() - xs.min() == 128 + 6 + 32 and green_ys.min() - ys.min() == 128 + 6


def test_captions_stand_under_their_pictures():
    picture = Image.new("RGB", (64, 64), "red")
    plain = plots.image_grid([[picture, picture]], cell=64)
    captioned = plots.image_grid([[picture, picture]], cell=64, captions=[["", "seen"]])
    assert captioned.height - plain.height == plots.TEXT_HEIGHT
    text_y, text_x = np.nonzero(~mask_of(captioned, (255, 255, 255)) & ~mask_of(captioned, (255, 0, 0)))
    assert text_y.min() >= plots.MARGIN + 64 and text_x.min() >= plots.MARGIN + 64 + 6


def test_small_pictures_are_enlarged_without_blur_and_transparency_is_white():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    large = np.asarray(plots.fitted(picture, 128))
    assert np.array_equal(large, np.asarray(picture).repeat(4, 0).repeat(4, 1))
    assert plots.fitted(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), 16).getpixel((0, 0)) == (255, 255, 255)
    assert plots.fitted(Image.new("L", (100, 1)), 10).size == (10, 1)


# Text


def test_long_labels_are_cut_with_an_ellipsis():
    font = plots._font()
    text = "a very long concept name that never ends"
    cut = plots.shorten(text, 100)
    assert cut.endswith("…") and text.startswith(cut[:-1]) and len(cut) > 8
    assert 80 < font.getlength(cut) <= 100
    assert plots.shorten("short", 100) == "short"
    assert plots.shorten("two\nlines", 100) == "two lines"
    assert plots.shorten("anything", 0) == "…"


def test_a_long_label_does_not_run_into_the_bars():
    image = plots.bar_chart(["W" * 200], [0.0])
    left = plots.MARGIN + plots.LABEL_WIDTH
    dark = np.nonzero(np.asarray(image.convert("L")) < 150)
    inside = dark[1] < left
    assert dark[1].min() >= plots.MARGIN - 1 and dark[1][inside].max() <= left - 9


def test_colors_of_the_palette_differ_in_lightness_or_hue():
    # Okabe and Ito's set; neighbors in use must stay apart when red and green look alike (deuteranopia, Vienot 1999).
    simulate = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    linear = (np.array(plots.PALETTE) / 255) ** 2.2
    seen = np.clip(linear @ simulate.T, 0, 1) ** (1 / 2.2)
    for i in range(len(seen)):
        for j in range(i):
            assert np.abs(seen[i] - seen[j]).max() > 0.1, (i, j)
