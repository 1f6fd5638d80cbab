"""What a user does in ComfyUI's page."""

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
# How a run may end, as the page's own events say it; with the progress of its nodes, {node, value, max} each.
ENDS = ["execution_success", "execution_error", "execution_interrupted"]
WATCH = """ends => {
    window.ended = null
    window.steps = []
    app.api.addEventListener("progress", event => { window.steps.push(event.detail) })
    for (const end of ends) app.api.addEventListener(end, () => { window.ended ??= end }, { once: true })
}"""


def workflow(name: str) -> dict[str, Any]:
    """A bundled workflow, as the page reads it."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def open_workflow(page: Page, graph: dict[str, Any]) -> None:
    """Show a graph, as dropping its file into the page does."""
    page.evaluate("async graph => { await app.loadGraphData(graph) }", graph)


def select(page: Page, kind: str) -> None:
    """Bring the top of a node of a class into the middle of the page, and select it until the page offers its help.

    The newer page does not notice the first selection after it was loaded.
    """
    page.wait_for_function(
        """kind => {
            const node = app.graph.nodes.find(node => node.type === kind)
            const offered = document.querySelector("[data-testid='info-button']")
            if (offered && app.canvas.selectedItems.has(node)) return true
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [600 - node.pos[0], 300 - node.pos[1]]
            app.canvas.deselectAll()
            app.canvas.selectNode(node)
            return false
        }""",
        arg=kind,
        polling=500,
    )


def keep_only(page: Page, kinds: list[str]) -> None:
    """Remove every other node, and of each class all but the first."""
    page.evaluate(
        """kinds => {
            const kept = kinds.map(kind => app.graph.nodes.find(node => node.type === kind))
            for (const node of [...app.graph.nodes]) if (!kept.includes(node)) app.graph.remove(node)
        }""",
        kinds,
    )


def add_every_node(page: Page) -> list[str]:
    """An empty graph with one node of each class of the pack, in a row; returns their classes."""
    return page.evaluate(
        """() => {
            app.graph.clear()
            const kinds = Object.keys(LiteGraph.registered_node_types).filter(kind => kind.startsWith("ContinualLoRA_"))
            kinds.forEach((kind, index) => {
                const node = LiteGraph.createNode(kind)
                node.pos = [500 * index, 0]
                app.graph.add(node)
            })
            return kinds
        }"""
    )


def set_widgets(page: Page, kind: str, values: dict[str, Any]) -> None:
    """Set widgets by name on every node of a class."""
    page.evaluate(
        """([kind, values]) => {
            for (const node of app.graph.nodes.filter(node => node.type === kind))
                for (const [name, value] of Object.entries(values))
                    node.widgets.find(widget => widget.name === name).value = value
        }""",
        [kind, values],
    )


def press_run(page: Page) -> None:
    """Press the button, and let the page remember how the run ends (`ended`) and its progress (`steps`)."""
    page.evaluate(WATCH, ENDS)
    page.get_by_role("button", name="Run", exact=True).first.click()  # the next one of this name is its menu


def press_stop(page: Page) -> None:
    """Press the button that ends the current run."""
    page.get_by_role("button", name="Cancel current run").click()


def wait_for_end(page: Page, seconds: float = 300) -> str:
    """How the run ended: one of ENDS."""
    return str(page.wait_for_function("() => window.ended", timeout=seconds * 1000).json_value())


def run(page: Page, seconds: float = 300) -> str:
    """Press Run and wait for the end."""
    press_run(page)
    return wait_for_end(page, seconds)
