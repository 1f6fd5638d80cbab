"""ComfyUI's own page in a browser without a window: open a graph, run it, take a picture of a part of it."""

import io
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SETTINGS: dict[str, Any] = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.LinkMarkers": 0,
    "Comfy.Workflow.Persist": False,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.NodeBadge.NodeIdBadgeMode": "None",
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
}
READY = "window.app?.graph && app.extensionManager?.setting && document.querySelector('#graph-canvas')"
MARGIN = 16  # pixels of the graph around what is pictured
Box = tuple[float, float, float, float]  # left, top, right, bottom in the graph


@contextmanager
def open_page(url: str, browser: str, locale: str = "en") -> Iterator[Page]:
    """ComfyUI's page, without menus around the canvas.

    Args:
        url: of the server.
        browser: the path of a Chromium.
        locale: a language that the page speaks.
    """
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=ARGUMENTS)
        page = chromium.new_page(viewport={"width": 1600, "height": 1000})
        _load(page, url)
        set_all = (
            "values => Promise.all(Object.entries(values).map(([k, v]) => app.extensionManager.setting.set(k, v)))"
        )
        page.evaluate(set_all, SETTINGS | {"Comfy.Locale": locale})
        _load(page, url)  # the nodes get their names when the page starts
        page.evaluate("app.extensionManager.focusMode = true")
        page.add_style_tag(content=".p-toast, .selection-toolbox, .comfy-menu-hamburger { display: none !important }")
        yield page
        chromium.close()


def _load(page: Page, url: str) -> None:
    page.goto(url)
    page.wait_for_function(READY, timeout=120_000)
    page.wait_for_timeout(3000)


def open_graph(page: Page, content: dict[str, Any]) -> None:
    """Put a workflow on the canvas."""
    page.evaluate("content => app.loadGraphData(content)", content)
    page.wait_for_timeout(1500)
    page.keyboard.press("Escape")  # the page asks for a checkpoint that is not there


def run_graph(page: Page, url: str) -> None:
    """Queue what is on the canvas and wait for its end; the pictures are on its nodes then."""
    page.evaluate("app.queuePrompt(0)")
    page.wait_for_timeout(1500)
    while True:
        with urllib.request.urlopen(f"{url}/queue") as answer:
            if not any(json.load(answer).values()):
                break
        time.sleep(1)
    page.wait_for_timeout(3000)


def box_of(page: Page) -> Box:
    """What the graph covers: nodes with their titles, and groups."""
    boxes = page.evaluate(
        """() => [
            ...app.graph.nodes.map(node => [node.pos[0], node.pos[1] - 30,
                node.pos[0] + node.size[0], node.pos[1] + (node.flags.collapsed ? 0 : node.size[1])]),
            ...app.graph.groups.map(g => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]]),
        ]"""
    )
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def picture(page: Page, box: Box, scale: float = 1.0) -> Image.Image:
    """A part of the canvas, `scale` pixels for one of the graph's."""
    left, top, right, bottom = box[0] - MARGIN, box[1] - MARGIN, box[2] + MARGIN, box[3] + MARGIN
    size = {"width": round((right - left) * scale), "height": round((bottom - top) * scale)}
    page.set_viewport_size(size)
    page.wait_for_timeout(700)
    where = {"scale": scale, "x": -left, "y": -top}
    page.evaluate(
        "w => { const ds = app.canvas.ds; ds.scale = w.scale; ds.offset[0] = w.x; ds.offset[1] = w.y;"
        " app.canvas.deselectAll(); app.canvas.setDirty(true, true) }",
        where,
    )
    page.wait_for_timeout(1200)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")
