"""Make the pictures of the templates and of the help pages, in ComfyUI's own page on a running server.

    python -m scripts.pictures URL /usr/bin/chromium thumbnails quickstart_cpu multi_concept_sd15
    python -m scripts.pictures URL /usr/bin/chromium help
    python -m scripts.pictures URL /usr/bin/chromium readme

Templates of the embedded base are run to the end, and shown by what comes out of them; the others are shown as the
page draws them. The help pages show their nodes in small graphs around the sequence that the quickstart leaves behind.
"""

import argparse
import io
import json
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import Page

from trainer.cli.demo import SAMPLES
from trainer.evaluation.report import THUMBNAIL as CELL
from trainer.plots import MARGIN, image_grid

from .graph import FOLDER, PREFIX
from .help_graphs import HELP_GRAPHS
from .page import box_of, open_graph, open_page, picture, run_graph

README_PICTURE = Path(__file__).parents[1] / "docs" / "quickstart.png"
HELP_FOLDER = Path(__file__).parents[1] / "js" / "docs" / "images"
SIDE = 600  # of a thumbnail; the template browser shows it as a square of about 300 pixels
GAP = 6  # between the cells of a contact sheet
SQUARE = 1680  # of the graph: the loader, and all that teaches


def outputs(page: Page, url: str, kind: str, title: str = "") -> list[list[Image.Image]]:
    """The images below each node of a class, and of a title if there is one."""
    found = page.evaluate(
        """([kind, title]) => app.graph.nodes
            .filter(node => node.type === kind && (!title || node.title === title))
            .map(node => app.nodeOutputs[node.id].images)""",
        [kind, title],
    )
    return [[_view(url, image) for image in images] for images in found]


def _view(url: str, image: dict[str, str]) -> Image.Image:
    with urllib.request.urlopen(f"{url}/view?{urllib.parse.urlencode(image)}") as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """Square pictures side by side and one row above the other, in a square of `SIDE` pixels."""
    side = SIDE // max(len(rows), len(rows[0]))
    sheet = Image.new("RGB", (side * len(rows[0]), side * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), (x * side, y * side))
    return sheet


def taught_and_drawn(page: Page, url: str) -> dict[str, tuple[list[Image.Image], list[Image.Image]]]:
    """Token -> four pictures of the concept, and four that the model drew of it."""
    widgets = page.evaluate(
        """kind => app.graph.nodes.filter(node => node.type === kind)
            .map(node => ["folder", "token"].map(name => node.widgets.find(widget => widget.name === name).value))""",
        f"{PREFIX}LoadConceptImages",
    )
    images = outputs(page, url, "SaveImage")
    return {
        token: (_sample(folder.removeprefix("bundled: "))[:4], made[:4])
        for (folder, token), made in zip(widgets, images, strict=True)
    }


def drawn(page: Page, url: str) -> Image.Image:
    """Pictures of each concept, and below them what the model drew of it."""
    return grid([images for pair in taught_and_drawn(page, url).values() for images in pair])


def _sample(name: str) -> list[Image.Image]:
    white = Image.new("RGBA", (SIDE, SIDE), "white")
    images = [Image.open(path).convert("RGBA") for path in sorted((SAMPLES / name).glob("*.png"))]
    return [Image.alpha_composite(white.resize(image.size), image).convert("RGB") for image in images]


def chart(page: Page, url: str) -> Image.Image:
    """The last Preview Image, on white."""
    return ImageOps.pad(outputs(page, url, "PreviewImage")[-1][0], (SIDE, SIDE), color="white")


def last_rows(page: Page, url: str) -> Image.Image:
    """The contact sheets' last rows, without their labels: a row for each recipe, a column for each concept."""
    rows = []
    for (sheet,) in outputs(page, url, "PreviewImage", "Contact sheet"):
        right, bottom = sheet.width - MARGIN, sheet.height - MARGIN
        rights = (right - 2 * (CELL + GAP), right - CELL - GAP, right)
        rows.append([sheet.crop((x - CELL, bottom - CELL, x, bottom)) for x in rights])
    return grid(rows)


def graph_itself(page: Page, _: str) -> Image.Image:
    """The left part of the graph, where the concepts are taught, as the page draws it."""
    left, top, *_ = box_of(page)
    shot = picture(page, (left, top, left + SQUARE, top + SQUARE), scale=0.6)
    return shot.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


THUMBNAILS = {
    "quickstart_cpu": drawn,
    "classify_with_dc_scores_cpu": chart,
    "which_method_forgets_least_cpu": last_rows,
    "sequential_concepts_sd15": graph_itself,
    "sequential_concepts_sdxl": graph_itself,
    "multi_concept_sd15": graph_itself,
}


def make_thumbnail(page: Page, url: str, name: str) -> None:
    """Write workflows/<name>.jpg."""
    open_graph(page, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    if THUMBNAILS[name] is not graph_itself:
        run_graph(page, url)
    THUMBNAILS[name](page, url).save(FOLDER / f"{name}.jpg", quality=82, optimize=True)


def make_readme(page: Page, url: str, name: str) -> None:
    """Write docs/quickstart.png: what a template taught and drew."""
    open_graph(page, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    run_graph(page, url)
    rows = taught_and_drawn(page, url)
    cells = [[*real, *made] for real, made in rows.values()]
    image_grid(cells, [f"<{token}>" for token in rows], ["real"] * 4 + ["drawn"] * 4).save(
        README_PICTURE, optimize=True
    )


def make_help(page: Page, url: str, name: str) -> None:
    """Write js/docs/images/<node id>.jpg: the node among its neighbors."""
    info = page.evaluate("app.api.getNodeDefs()")
    graph = HELP_GRAPHS[name](info)
    open_graph(page, graph.content())
    if any(info[node["type"]]["output_node"] for node in graph.nodes):
        run_graph(page, url)
    HELP_FOLDER.mkdir(exist_ok=True)
    shot = picture(page, box_of(page))
    shot.save(HELP_FOLDER / f"{PREFIX}{name}.jpg", quality=60, optimize=True)


KINDS: dict[str, tuple[Callable[[Page, str, str], None], Iterable[str]]] = {
    "thumbnails": (make_thumbnail, THUMBNAILS),
    "help": (make_help, HELP_GRAPHS),
    "readme": (make_readme, ["quickstart_cpu"]),
}


def main() -> None:
    """Make the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("browser", help="the path of a Chromium")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("names", nargs="*", help="only these")
    arguments = parser.parse_args()
    make, known = KINDS[arguments.kind]
    with open_page(arguments.url, arguments.browser) as page:
        for name in arguments.names or known:
            make(page, arguments.url, name)


if __name__ == "__main__":
    main()
