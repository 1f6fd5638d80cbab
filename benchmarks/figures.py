"""The benchmark's pictures."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from PIL import Image

from benchmarks.tables import Rows, front_lines, grouped, means
from trainer.plots import CELL, GAP, MARGIN


def draw_front(rows: Rows, path: Path) -> None:
    """Stability against plasticity: a line for each penalty method, a point for each strength.

    Bars are standard deviations over the seeds. A method is better where its line lies lower.
    """
    mpl.rcParams["svg.hashsalt"] = "front"
    figure, axes = plt.subplots(figsize=(8, 5.5))
    for number, (name, group) in enumerate(front_lines(rows).items()):
        points = grouped(group, lambda row: row["settings"]).values()
        at = [(means(point, "new_mmd"), means(point, "f_mmd")) for point in points]
        (x, dx), (y, dy) = ([[value[k] for value in side] for k in (0, 1)] for side in zip(*at, strict=True))
        axes.errorbar(x, y, yerr=dy, xerr=dx, label=name, marker="o", capsize=2, linewidth=1, color=f"C{number}")
    axes.set_xlabel("new concepts right after their task: MMD to the real images (lower learns more)")
    axes.set_ylabel("forgetting: F_MMD (lower keeps more)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_norms(logs: dict[str, Path], path: Path) -> None:
    """The norm of what is trained over all steps of a sequence, one line for each recipe; tasks begin at the bars.

    With C-LoRA that is the concept's own update, which starts at zero, not the sum of the earlier ones.

    Args:
        logs: recipe -> the log that its run left, a line for each task.
        path: of the picture.
    """
    figure, axes = plt.subplots(figsize=(8, 4))
    for name, log in logs.items():
        tasks = [[float(value) for value in line.split(",")] for line in log.read_text(encoding="utf-8").splitlines()]
        axes.plot([value for task in tasks for value in task], label=name, linewidth=1)
    for number in range(1, len(tasks)):
        axes.axvline(sum(map(len, tasks[:number])), color="0.85", zorder=0)
    axes.set_xlabel("step")
    axes.set_ylabel("Frobenius norm of the update")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_growth(logs: dict[str, Path], path: Path) -> None:
    """Seconds of each task, and bytes that it leaves, over the turn of the task; one line for each recipe."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for number, (name, log) in enumerate(logs.items()):
        rows = [[float(value) for value in line.split(",")] for line in log.read_text(encoding="utf-8").splitlines()]
        seconds, carried, whole = zip(*rows, strict=True)
        turns, color = range(1, len(rows) + 1), f"C{number}"
        left.plot(turns, seconds, label=name, linewidth=1, color=color)
        right.plot(turns, [size / 2**20 for size in carried], label=name, linewidth=1, color=color)
        right.plot(turns, [size / 2**20 for size in whole], linestyle=":", linewidth=1, color=color)
    for axes, label in ((left, "seconds of the task"), (right, "MiB for the next task (dotted: of all tasks)")):
        axes.set_xlabel("task")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def stack_sheets(pictures: list[Image.Image], path: Path) -> None:
    """The sheets of several runs under each other."""
    stack = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        stack.paste(picture, (stack.width - picture.width, top))
        top += picture.height
    stack.quantize(256).save(path, optimize=True)


def whole(sheet: Image.Image) -> Image.Image:
    """All of it."""
    return sheet


def without_first_row(sheet: Image.Image) -> Image.Image:
    """Of three: the real photographs are not ours to ship."""
    begin, end = (sheet.height - MARGIN + GAP - rows * (CELL + GAP) for rows in (3, 2))
    cut = Image.new("RGB", (sheet.width, sheet.height - CELL - GAP), "white")
    cut.paste(sheet.crop((0, 0, sheet.width, begin)), (0, 0))
    cut.paste(sheet.crop((0, end, sheet.width, sheet.height)), (0, begin))
    return cut


def outer_columns(sheet: Image.Image) -> Image.Image:
    """Of fifty: the first four and the last three."""
    step = CELL + GAP
    last, first = sheet.width - MARGIN + GAP - 3 * step, sheet.width - MARGIN + GAP - 50 * step
    cut = Image.new("RGB", (first + 7 * step - GAP + MARGIN, sheet.height), "white")
    cut.paste(sheet.crop((0, 0, first + 4 * step, sheet.height)), (0, 0))
    cut.paste(sheet.crop((last, 0, sheet.width, sheet.height)), (first + 4 * step, 0))
    return cut
