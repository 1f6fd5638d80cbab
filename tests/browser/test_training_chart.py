"""The live chart in Train Continual LoRA: it moves while it trains, and is there again when the page is opened anew."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page

from .pages import keep_only, open_workflow, press_run, press_stop, set_widgets, wait_for_end, workflow

TRAIN, OPTIONS = "ContinualLoRA_Train", "ContinualLoRA_TrainOptions"
NEEDED = [TRAIN, OPTIONS, "ContinualLoRA_LoadConceptImages", "ContinualLoRA_LoadTinyBase"]
PANEL = ".continual-lora-training"
HEADING = f"{PANEL}-phase"
# How many of the chart's pixels are blue, as the curves of the loss are.
BLUE = """() => {
    const canvas = document.querySelector(".continual-lora-training canvas")
    const pixels = canvas?.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data ?? []
    let count = 0
    for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 2] > pixels[i] + 60 && pixels[i + 3] > 40) count++
    return count
}"""
AT_STEP = """([heading, step]) => {
    const found = /Training.* step (\\d+) of/.exec(document.querySelector(heading)?.textContent)
    return found && Number(found[1]) >= step
}"""
SAYS = "([selector, words]) => document.querySelector(selector)?.textContent.includes(words)"


def open_training(page: Page, sequence: str, **train: Any) -> None:
    """The first training of the quickstart, without scores and quick unless it is told otherwise."""
    open_workflow(page, workflow("quickstart_cpu"))
    keep_only(page, NEEDED)
    set_widgets(page, TRAIN, {"sequence_name": sequence, "steps": 60, "rank": 2, "recipe": "lora", **train})
    set_widgets(page, OPTIONS, {"batch_size": 1, "fisher_draws": 4})
    look_at(page)


def look_at(page: Page) -> None:
    """Have the node in view, at its own size."""
    page.evaluate(
        """kind => {
            const [x, y] = app.graph.nodes.find(node => node.type === kind).pos
            Object.assign(app.canvas.ds, { scale: 1 })
            app.canvas.ds.offset[0] = 500 - x
            app.canvas.ds.offset[1] = 120 - y
            app.canvas.setDirty(true, true)
        }""",
        TRAIN,
    )


def saved(page: Page) -> dict[str, Any]:
    """The workflow as its file would be."""
    return json.loads(page.evaluate("JSON.stringify(app.graph.serialize())"))


def wait_for_words(page: Page, words: str, selector: str = HEADING) -> None:
    page.wait_for_function(SAYS, arg=[selector, words])


def test_chart_moves_while_it_trains_and_in_a_second_page(page: Page, open_page: Callable[..., Page]) -> None:
    open_training(page, "moving", steps=5000)  # more than are made while the second page opens
    wait_for_words(page, "Not trained yet")
    press_run(page)
    page.wait_for_function(AT_STEP, arg=[HEADING, 5])
    early = page.evaluate(BLUE)
    other = open_page()  # a browser that knows nothing of the run
    open_workflow(other, saved(page))
    look_at(other)
    other.wait_for_function(AT_STEP, arg=[HEADING, 5])
    press_stop(page)
    assert wait_for_end(page) == "execution_interrupted"
    for each in (page, other):
        wait_for_words(each, "Stopped <my-fox>")
        each.wait_for_function(f"early => ({BLUE})() > early", arg=max(early, 1))
    curves = [each.evaluate(BLUE) for each in (page, other)]
    assert curves[0] == pytest.approx(curves[1], rel=0.05)
    figures = [each.locator(f"{PANEL}-figures, {PANEL}-legend").all_inner_texts() for each in (page, other)]
    assert figures[0] == figures[1] and "Adapter norm" in figures[0][1]


def test_chart_is_there_after_a_reload_and_not_in_another_workflow(page: Page) -> None:
    open_training(page, "reloaded", steps=8)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    wait_for_words(page, "Trained <my-fox>")
    graph, legend = saved(page), page.locator(f"{PANEL}-legend").inner_text()
    page.reload()
    page.wait_for_function("() => window.app?.extensionManager?.workflow?.activeWorkflow")
    open_workflow(page, graph)
    wait_for_words(page, "Trained <my-fox>")
    assert page.locator(f"{PANEL}-legend").inner_text() == legend
    open_workflow(page, {**graph, "id": "00000000-1111-2222-3333-444444444444"})
    wait_for_words(page, "Not trained yet")


def test_a_training_that_comfyui_has_in_memory_is_said_to_be_there(page: Page, open_page: Callable[..., Page]) -> None:
    open_training(page, "in memory", steps=4)
    press_run(page)
    wait_for_words(page, "Trained <my-fox>")
    graph = saved(page)
    graph["id"] = str(uuid.uuid4())  # as if the template were opened anew
    other = open_page()
    open_workflow(other, graph)
    look_at(other)
    wait_for_words(other, "Not trained yet")
    press_run(other)
    wait_for_words(other, "Already trained")
    wait_for_words(other, "still has the result", f"{PANEL}-message")


def test_stopped_training_is_shown_as_such_and_goes_on(page: Page) -> None:
    open_training(page, "halted", steps=150)
    press_run(page)
    page.wait_for_function(AT_STEP, arg=[HEADING, 3])
    press_stop(page)
    assert wait_for_end(page) == "execution_interrupted"
    wait_for_words(page, "Stopped <my-fox>")
    wait_for_words(page, "go on from here", f"{PANEL}-message")
    press_run(page)
    page.wait_for_function(AT_STEP, arg=[HEADING, 4])
    assert page.evaluate(BLUE) > 0
    press_stop(page)
    wait_for_end(page)


def test_values_can_be_read_with_the_keyboard(page: Page) -> None:
    open_training(page, "keys", steps=6)
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    wait_for_words(page, "Trained <my-fox>")
    page.locator(f"{PANEL}-chart").focus()
    for key, step in (("ArrowLeft", 6), ("ArrowLeft", 5), ("Home", 1), ("ArrowRight", 2), ("End", 6)):
        page.keyboard.press(key)
        wait_for_words(page, f"Training {step}: Loss", f"{PANEL}-words")
    assert page.evaluate("app.graph.nodes.length") == len(NEEDED)  # no key did something to the nodes


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_chart_of_a_vue_node_with_penalty_scores_and_picture(open_page: Callable[..., Page], palette: str) -> None:
    page = open_page({"Comfy.VueNodes.Enabled": True, "Comfy.ColorPalette": palette})
    open_training(page, f"vue {palette}", steps=6, recipe="lora_ewc_dc")
    set_widgets(page, OPTIONS, {"sample_every": 6})
    press_run(page)
    assert wait_for_end(page) == "execution_success"
    wait_for_words(page, "Trained <my-fox>")
    wait_for_words(page, "DC accuracy", f"{PANEL}-figures")
    page.wait_for_function("() => document.querySelector('.continual-lora-training img').naturalWidth === 64")
    panel, node = (page.locator(selector).bounding_box() for selector in (PANEL, f".lg-node:has({PANEL})"))
    assert node["x"] <= panel["x"] and panel["x"] + panel["width"] <= node["x"] + node["width"]
    assert panel["height"] >= 320 and panel["y"] + panel["height"] <= node["y"] + node["height"]
    assert page.evaluate(BLUE) > 0
