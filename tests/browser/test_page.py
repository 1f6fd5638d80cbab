"""ComfyUI's page with the pack in it; every test also fails on an error in the console."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

from .pages import open_workflow, workflow

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
# Notes are nodes of the page alone: the server does not know them.
MISSING = """() => app.graph.nodes
    .filter(node => !(node.type in LiteGraph.registered_node_types))
    .map(node => node.type)"""


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_opens_with_no_missing_node(name: str, page: Page) -> None:
    open_workflow(page, workflow(name))
    assert page.evaluate("app.graph.nodes.length") == len(workflow(name)["nodes"])
    assert page.evaluate(MISSING) == []
