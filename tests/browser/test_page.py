"""ComfyUI's page with the pack in it; every test also fails on an error in the console."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.server import Server

from .pages import (
    add_every_node,
    keep_only,
    open_workflow,
    press_run,
    press_stop,
    run,
    select,
    set_widgets,
    wait_for_end,
    workflow,
)

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
MISSING = """() => app.graph.nodes
    .filter(node => !(node.type in LiteGraph.registered_node_types))
    .map(node => node.type)"""
# How many loaded images each node shows, as far as it shows any, in order of the nodes.
SHOWN = """counts => {
    const shown = app.graph.nodes.map(node => node.imgs ?? []).filter(images => images.length)
    return shown.every(images => images.every(image => image.complete && image.naturalWidth))
        && JSON.stringify(shown.map(images => images.length).sort()) === JSON.stringify([...counts].sort())
}"""
# Every node of the graph is an element that names the node and each of its widgets, long texts where they are empty.
WIDGETS_SHOWN = """() => app.graph.nodes.every(node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    const hints = [...(element?.querySelectorAll("textarea") ?? [])].map(area => area.placeholder)
    const shown = [element?.textContent ?? "", ...hints].join(" ")
    const named = (node.widgets ?? []).filter(widget => !widget.element)
    return [node.title, ...named.map(widget => widget.name)].every(word => shown.includes(word))
})"""
AT_STEP = "value => steps.some(step => step.max > 100 && step.value >= value)"
TRAIN, CONCEPT = "ContinualLoRA_Train", "ContinualLoRA_LoadConceptImages"
QUICK = {
    "ContinualLoRA_Train": {"steps": 3, "rank": 2},
    "ContinualLoRA_TrainOptions": {"fisher_draws": 4, "batch_size": 1},
    "ContinualLoRA_ClassifierScore": {"trials": 2},
    "KSampler": {"steps": 2},
}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_opens_with_no_missing_node(name: str, page: Page) -> None:
    open_workflow(page, workflow(name))
    assert page.evaluate("app.graph.nodes.length") == len(workflow(name)["nodes"])
    assert page.evaluate(MISSING) == []


def test_new_user_opens_the_quickstart_among_the_templates_and_runs_it(open_page: Callable[..., Page]) -> None:
    page = open_page({"Comfy.TutorialCompleted": None})
    page.get_by_text("continual_lora", exact=True).first.click()
    page.get_by_test_id("template-workflow-quickstart_cpu").click()
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow("quickstart_cpu")["nodes"]))
    for kind, widgets in QUICK.items():
        set_widgets(page, kind, widgets)
    assert run(page) == "execution_success"
    # Two concepts with four images drawn of each, and the chart of the scores.
    page.wait_for_function(SHOWN, arg=[4, 4, 1])


def test_error_of_a_node_is_shown_in_our_words(page: Page) -> None:
    open_workflow(page, workflow("quickstart_cpu"))
    keep_only(page, [CONCEPT])
    set_widgets(page, CONCEPT, {"token": "my fox!"})
    assert run(page) == "execution_error"
    expected = "A token is 1 to 64 characters long, each a letter A to Z, a digit, - or _, and a valid file name."
    words = f'{expected} It is `my fox!`. Set "token" to a made-up word such as "my-fox".'
    shown, more = page.get_by_text(words).first, page.get_by_role("button", name="See Errors")
    shown.wait_for()
    if more.is_visible():  # a newer page shows the beginning only, and all of it in its panel
        more.click()
        page.get_by_text("1 ERROR").wait_for(state="hidden")
        shown.wait_for()
    assert page.evaluate("app.graph.nodes[0].strokeStyles.executionError.call(app.graph.nodes[0])")  # outlined


def test_help_page_of_every_node_opens(page: Page) -> None:
    kinds = add_every_node(page)
    assert {f"{kind}.md" for kind in kinds} == {path.name for path in (ROOT / "js" / "docs").glob("*.md")}
    for kind in kinds:
        select(page, kind)
        page.get_by_test_id("info-button").click()
        text = (ROOT / "js" / "docs" / f"{kind}.md").read_text(encoding="utf-8")
        title, sentence = [line for line in text.splitlines() if line][:2]
        page.get_by_role("heading", name=title.removeprefix("# "), exact=True).first.wait_for()
        page.get_by_text(sentence.split("`")[0]).first.wait_for()
        picture = page.locator(f"img[src$='/docs/images/{kind}.jpg']")
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") >= 300


def test_stopped_training_goes_on_when_it_is_queued_again(page: Page, server: Server) -> None:
    open_workflow(page, workflow("quickstart_cpu"))
    keep_only(page, [TRAIN, CONCEPT, "ContinualLoRA_TrainOptions", "ContinualLoRA_LoadTinyBase"])
    set_widgets(page, TRAIN, {"sequence_name": "stopped", "steps": 150, "rank": 2, "recipe": "lora"})
    set_widgets(page, "ContinualLoRA_TrainOptions", {"batch_size": 1})
    sequence = server.base / "output" / "continual_lora" / "stopped"
    press_run(page)
    page.wait_for_function(AT_STEP, arg=2)
    press_stop(page)
    assert wait_for_end(page) == "execution_interrupted"
    (state,) = (sequence / "partial").iterdir()
    assert run(page) == "execution_success"
    first = page.evaluate("steps.find(step => step.max >= 150).value")
    assert first > 2
    (task,) = json.loads((sequence / "manifest.json").read_text(encoding="utf-8"))["tasks"].values()
    assert task["token"] == "my-fox"
    assert not state.exists()


def test_vue_nodes_show_every_widget(open_page: Callable[..., Page]) -> None:
    page = open_page({"Comfy.VueNodes.Enabled": True})
    assert len(add_every_node(page)) >= 10
    page.get_by_role("button", name="Fit View").click()
    page.wait_for_function(WIDGETS_SHOWN)
