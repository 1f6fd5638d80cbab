"""What a user does in ComfyUI's page."""

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
# How a run may end, as the page's own events say it.
ENDS = ["execution_success", "execution_error", "execution_interrupted"]
WATCH = """ends => {
    window.ended = null
    for (const end of ends) app.api.addEventListener(end, () => { window.ended ??= end }, { once: true })
}"""


def workflow(name: str) -> dict[str, Any]:
    """A bundled workflow, as the page reads it."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def open_workflow(page: Page, graph: dict[str, Any]) -> None:
    """Show a graph, as dropping its file into the page does."""
    page.evaluate("async graph => { await app.loadGraphData(graph) }", graph)


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
    """Press the button, and let the page remember how the run ends."""
    page.evaluate(WATCH, ENDS)
    page.get_by_role("button", name="Run", exact=True).click()


def wait_for_end(page: Page, seconds: float = 300) -> str:
    """How the run ended: one of ENDS."""
    return str(page.wait_for_function("() => window.ended", timeout=seconds * 1000).json_value())


def run(page: Page, seconds: float = 300) -> str:
    """Press Run and wait for the end."""
    press_run(page)
    return wait_for_end(page, seconds)
