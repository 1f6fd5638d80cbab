"""The concept-sequence panel in ComfyUI's page: what it shows, copies and reaches by keyboard, in both renderers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.server import Client, Server

from .conftest import photograph
from .pages import open_workflow, run

expect.set_options(timeout=60_000)  # a busy machine

NAME = "panel pets"
PANEL = ".continual-lora-sequence"
VUE = {"Comfy.VueNodes.Enabled": True}
CLASSIC = {"Comfy.VueNodes.Enabled": False}
LIGHT = {"Comfy.ColorPalette": "light"}
DRAWN = "images => images.every(image => image.complete && image.naturalWidth > 0)"


def with_defaults(client: Client, kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt, its widgets at their defaults but for `inputs`."""
    found = {}
    for name, (kind_of, *rest) in client.object_info()[kind]["input"]["required"].items():
        options = rest[0] if rest else {}
        choices = options.get("options") or (kind_of if isinstance(kind_of, list) else None)
        if choices or "default" in options:
            found[name] = options.get("default", (choices or [None])[0])
    return {"class_type": kind, "inputs": found | inputs}


@pytest.fixture(scope="module")
def sequence(server: Server) -> Path:
    """Two concepts on the embedded base, taught by the server in three steps each."""
    client = Client(server.url)
    prompt = {"base": {"class_type": "ContinualLoRA_LoadTinyBase", "inputs": {}}}
    earlier = {}
    for number, (sample, noun) in enumerate((("fox", "animal"), ("sunflower", "plant"))):
        images = {"folder": f"bundled: {sample}", "token": f"my-{sample}", "class_noun": noun}
        prompt[f"images {number}"] = with_defaults(client, "ContinualLoRA_LoadConceptImages", **images)
        links = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "concept": [f"images {number}", 0]}
        few = {"sequence_name": NAME, "recipe": "lora", "steps": 3, "rank": 2}
        prompt[f"train {number}"] = with_defaults(client, "ContinualLoRA_Train", **links, **few, **earlier)
        earlier = {"sequence": [f"train {number}", 0]}
    prompt["tokens"] = with_defaults(client, "ContinualLoRA_SaveSequence", **earlier, filename="panel")
    done = client.run(prompt)
    assert done.status == "success", done.error
    return server.base / "output" / "continual_lora" / NAME


def graph(*nodes: dict[str, Any], links: list[list[Any]]) -> dict[str, Any]:
    """A workflow as the page saves it."""
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(nodes),
        "links": links,
        "version": 0.4,
    }


def node(number: int, kind: str, place: int, **more: Any) -> dict[str, Any]:
    base = {
        "id": number,
        "type": kind,
        "pos": [place, 100],
        "size": [400, 100],
        "flags": {},
        "order": number,
        "mode": 0,
    }
    return base | {"properties": {}, "inputs": [], "outputs": [], "widgets_values": []} | more


def loading(choice: str) -> dict[str, Any]:
    return graph(node(1, "ContinualLoRA_LoadSequence", 100, widgets_values=[choice]), links=[])


def evaluating() -> dict[str, Any]:
    """Load Tiny Base and Load Concept Sequence into Evaluate Concept Sequence."""
    kinds = ["MODEL", "CLIP", "VAE", "CONCEPT_SEQUENCE"]
    slots = ["model", "clip", "vae", "sequence"]
    sockets = [
        {"name": slot, "type": kind, "link": i} for i, (slot, kind) in enumerate(zip(slots, kinds, strict=True), 1)
    ]
    base = [
        {"name": slot, "type": kind, "links": [i]}
        for i, (slot, kind) in enumerate(zip(slots[:3], kinds, strict=False), 1)
    ]
    line = [{"name": "sequence", "type": kinds[3], "links": [4]}, {"name": "tokens", "type": "STRING", "links": []}]
    values = [2, 0, 2, 2.0, "ddim", "normal", 64, 2, 0, "", "ViT-B-32"]
    return graph(
        node(1, "ContinualLoRA_LoadTinyBase", 100, outputs=base),
        node(2, "ContinualLoRA_LoadSequence", 100, pos=[100, 300], outputs=line, widgets_values=[NAME]),
        node(3, "ContinualLoRA_EvaluateSequence", 560, inputs=sockets, widgets_values=values),
        links=[[i, 1, i - 1, 3, i - 1, kinds[i - 1]] for i in (1, 2, 3)] + [[4, 2, 0, 3, 3, kinds[3]]],
    )


def panel(page: Page, number: int) -> Locator:
    """The panel of a node, moved into the left half of the window."""
    page.evaluate(
        """async number => {
            const node = app.graph.getNodeById(number)
            const panel = node.widgets.find(widget => widget.name === "sequence_panel").element
            panel.id = `panel-${number}`
            const move = async (x, y) => {
                app.canvas.ds.offset = [x, y]
                app.canvas.setDirty(true, true)
                for (let frame = 0; frame < 4 || !panel.offsetWidth; frame++) await new Promise(requestAnimationFrame)
            }
            app.canvas.ds.scale = 1
            await move(150 - node.pos[0], 100 - node.pos[1])
            const [{ x, y }, [left, top]] = [panel.getBoundingClientRect(), app.canvas.ds.offset]
            await move(left + 150 - x, top + 400 - y)
        }""",
        number,
    )
    return page.locator(f"#panel-{number}")


@pytest.mark.parametrize("settings", [CLASSIC, VUE, VUE | LIGHT], ids=["classic", "vue", "vue light"])
def test_load_shows_the_tasks_before_anything_is_run(
    settings: dict[str, Any], open_page: Callable[..., Page], sequence: Path
) -> None:
    page = open_page(settings)
    open_workflow(page, loading(NAME))
    shown = panel(page, 1)
    cards = shown.locator("li:not([aria-hidden])")
    expect(cards).to_have_count(2)
    for card, words in zip(cards.all(), (("<my-fox>", "animal"), ("<my-sunflower>", "plant")), strict=True):
        for text in (*words, "lora", "no penalty", "6 images", "KB", "20"):
            expect(card).to_contain_text(text)
    expect(shown.get_by_role("img").first).to_be_visible()
    page.wait_for_function(f"() => ({DRAWN})([...document.querySelectorAll('#panel-1 img')])")
    width = shown.bounding_box()["width"]  # type: ignore[index]
    assert 340 <= width <= 460


@pytest.mark.parametrize("settings", [CLASSIC, VUE], ids=["classic", "vue"])
def test_a_click_copies_the_token_and_says_so(
    settings: dict[str, Any], open_page: Callable[..., Page], sequence: Path
) -> None:
    page = open_page(settings)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    open_workflow(page, loading(NAME))
    shown = panel(page, 1)
    token = shown.get_by_role("button", name="Copy the token <my-sunflower>")
    token.click()
    expect(shown.get_by_role("status")).to_have_text("Copied <my-sunflower>")
    expect(token).to_have_text("✓ copied")
    assert page.evaluate("navigator.clipboard.readText()") == "<my-sunflower>"
    expect(token).to_have_text("<my-sunflower>")
    page.keyboard.press("ArrowLeft")
    expect(shown.get_by_role("button", name="Copy the token <my-fox>")).to_be_focused()
    page.keyboard.press("Enter")
    expect(shown.get_by_role("status")).to_have_text("Copied <my-fox>")
    assert page.evaluate("navigator.clipboard.readText()") == "<my-fox>"


def test_the_panel_follows_the_choice_and_keeps_out_of_the_workflow(
    open_page: Callable[..., Page], sequence: Path
) -> None:
    page = open_page(CLASSIC)
    manifest = json.loads((sequence / "manifest.json").read_text())
    first = next(task["folder"] for task in manifest["tasks"].values() if task["index"] == 1)
    open_workflow(page, loading(NAME))
    cards = panel(page, 1).locator("li:not([aria-hidden])")
    expect(cards).to_have_count(2)
    page.evaluate(
        """choice => {
            const widget = app.graph.getNodeById(1).widgets.find(widget => widget.name === "sequence_name")
            widget.value = choice
            widget.callback(choice)
        }""",
        f"{NAME} / {first}",
    )
    expect(cards).to_have_count(1)
    assert page.evaluate("app.graph.serialize().nodes[0].widgets_values") == [f"{NAME} / {first}"]


@pytest.mark.parametrize("settings", [CLASSIC, VUE], ids=["classic", "vue"])
def test_evaluate_shows_the_map_and_the_images_behind_a_number(
    settings: dict[str, Any], open_page: Callable[..., Page], sequence: Path
) -> None:
    page = open_page(settings)
    open_workflow(page, evaluating())
    expect(panel(page, 3)).to_contain_text("Run this node")
    assert run(page) == "execution_success"
    shown = panel(page, 3)
    table = shown.get_by_role("table")
    expect(table.get_by_role("columnheader")).to_have_text(["my-fox", "my-sunflower"])
    expect(table.get_by_role("rowheader")).to_have_text(["1 my-fox", "2 my-sunflower"])
    expect(shown).to_contain_text("Features: EfficientNet-Lite0 (ImageNet)")
    (report,) = (sequence / "evaluation" / "reports").iterdir()
    cells = json.loads((report / "evaluation.json").read_text())["cells"]
    buttons = table.get_by_role("button")
    expect(buttons).to_have_count(3)
    for button, cell in zip(buttons.all(), cells, strict=True):
        assert float(button.inner_text()) == pytest.approx(cell["mmd"], rel=0.005)
    panel(page, 3)  # again: it has grown
    buttons.nth(1).hover()
    preview = page.get_by_role("tooltip").filter(has_text="my-fox after task 2, my-sunflower")
    expect(preview).to_be_visible()
    expect(preview.get_by_role("img", name="my-fox, real,")).to_have_count(6)
    expect(preview.get_by_role("img", name="my-fox, drawn after task 2")).to_have_count(2)
    page.wait_for_function(f"() => ({DRAWN})([...document.querySelectorAll('{PANEL}-preview img')])")
    photograph(page, f"sequence panel hover {settings == VUE}")
    page.mouse.move(5, 5)
    expect(preview).to_have_count(0)
    buttons.nth(1).focus()
    page.keyboard.press("ArrowRight")
    expect(buttons.nth(2)).to_be_focused()
    expect(page.get_by_role("tooltip").filter(has_text="my-sunflower after task 2")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(f"{PANEL}-preview")).to_have_count(0)
    shown.get_by_role("combobox").select_option("dc_accuracy")
    expect(buttons.first).to_have_accessible_name(
        f"my-fox after task 1, my-fox: DC accuracy {cells[0]['dc_accuracy']:.3g}"
    )


def test_a_saved_workflow_opens_with_its_evaluation(open_page: Callable[..., Page], sequence: Path) -> None:
    first = open_page(CLASSIC)
    open_workflow(first, evaluating())
    assert run(first) == "execution_success"
    expect(panel(first, 3).get_by_role("table")).to_be_visible()
    saved = first.evaluate("app.graph.serialize()")
    second = open_page(CLASSIC)
    open_workflow(second, saved)
    expect(panel(second, 3).get_by_role("table").get_by_role("button")).to_have_count(3)
