"""The panel of Load Concept Images in the page: files are dropped, pasted and picked, captions are edited."""

import base64
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.server import Server
from trainer.concept import TEMPLATE, bare_token, check_token, concept_from_batch
from trainer.errors import ContinualLoraError

KIND = "ContinualLoRA_LoadConceptImages"
ADD = """([kind, values]) => {
    app.graph.clear()
    const node = LiteGraph.createNode(kind)
    node.pos = [200, 80]
    app.graph.add(node)
    for (const [name, value] of Object.entries(values)) {
        const widget = node.widgets.find(widget => widget.name === name)
        widget.value = value
        widget.callback(value)
    }
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [0, 0]
    app.canvas.setDirty(true, true)
}"""
TRANSFER = """files => {
    const transfer = new DataTransfer()
    for (const [name, type, content] of files) {
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0))
        transfer.items.add(new File([bytes], name, { type }))
    }
    return transfer
}"""
PASTE = """transfer => {
    app.canvas.selectNode(app.graph.nodes[0])
    document.activeElement.blur()
    const paste = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    app.canvas.canvas.dispatchEvent(paste)
}"""
FOLDER = "() => app.graph.nodes[0].widgets.find(widget => widget.name === 'folder')"
both_renderers = pytest.mark.parametrize("vue", [False, True], ids=["canvas", "vue"])


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (48, 32), color).save(file, "PNG")
    return file.getvalue()


def transfer(page: Page, **files: bytes) -> object:
    """What a drag or a clipboard holds; `a_png` is the file a.png."""
    types = {"png": "image/png", "gif": "image/gif", "txt": "text/plain"}
    listed = [
        [name.replace("_", "."), types[name.rsplit("_", 1)[-1]], base64.b64encode(content).decode()]
        for name, content in files.items()
    ]
    return page.evaluate_handle(TRANSFER, listed)


@pytest.fixture
def concepts(server: Server) -> Iterator[Path]:
    """Where new images go; gone after each test."""
    folder = server.base / "input" / "concepts"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def shown(concepts: Path, open_page: Callable[..., Page]) -> Callable[..., tuple[Page, Locator]]:
    """A page with one node, and its panel; the page is closed before the images go."""

    def open_with(vue: bool, **values: str) -> tuple[Page, Locator]:
        page = open_page({"Comfy.VueNodes.Enabled": vue})
        page.evaluate(ADD, [KIND, values])
        panel = page.get_by_label("Images of the concept and their captions")
        expect(panel).to_be_visible()
        return page, panel

    return open_with


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_folder(folder: Path, name: str, color: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(png(color))
    return folder / name


@pytest.fixture
def in_page(browser: Browser, server: Server) -> Iterator[Callable[..., Any]]:
    """Calls a function of concept_words.js in a page of the server that shows nothing."""
    page = browser.new_page()
    page.goto(f"{server.url}/system_stats")
    call = """async ([name, given]) =>
        (await import("/extensions/continual_lora/lib/concept_words.js"))[name](...given)"""
    yield lambda name, *given: page.evaluate(call, [name, given])
    page.close()


def test_prompts_on_the_node_are_those_of_the_training(in_page: Callable[..., Any]) -> None:
    captions = [
        "",
        "a red toy",
        "<my-toy> {class_noun}",
        "{token}",
        "a <{token}>, {class_noun}",
        "$& $1 {}",
        "<MY-TOY>",
    ]
    for token in ("my-toy", " <my-toy> "):
        for noun in (" toy ", "$&", "{token}"):
            for template in (TEMPLATE, "<{token}>", "$$ <my-toy>"):
                blank = torch.zeros(len(captions), 8, 8, 3)
                concept = concept_from_batch(blank, token=token, class_noun=noun, template=template)
                words = {"token": token, "classNoun": noun, "template": template}
                shown = [in_page("trainedUnder", caption, words) for caption in captions]
                assert shown == replace(concept, captions=captions).prompts


@pytest.mark.parametrize("token", ["my-toy", "<my-toy>", " A_1 ", "x" * 64, "com10"])
def test_folder_is_named_after_a_token_that_is_one(token: str, in_page: Callable[..., Any]) -> None:
    check_token(bare_token(token))
    assert in_page("newFolder", token, []) == f"concepts/{bare_token(token)}"
    taken = [f"concepts/{bare_token(token)}{end}" for end in ("", "-2", "-4")]
    assert in_page("newFolder", token, taken) == f"concepts/{bare_token(token)}-3"


@pytest.mark.parametrize(
    "token",
    ["", "..", "a/b", "a\\b", "../..", "a b", "<<a>>", "x" * 65, "CON", "nul", "lpt1", "conin$", "\0", "fuchs\xe4"],
)
def test_no_folder_is_named_after_what_is_no_token(token: str, in_page: Callable[..., Any]) -> None:
    with pytest.raises(ContinualLoraError):
        check_token(bare_token(token))
    assert in_page("newFolder", token, []) is None


@both_renderers
def test_dropped_and_pasted_images_land_in_a_folder_named_after_the_token(
    vue: bool, shown: Callable[..., tuple[Page, Locator]], concepts: Path
) -> None:
    page, panel = shown(vue, token="my-toy")
    expect(panel).to_contain_text("They go to input/concepts/my-toy.")
    files = transfer(
        page, a_png=png("red"), a_txt=b"a red toy", b_png=png("blue"), c_gif=b"GIF89a", d_txt=b"of nothing"
    )
    panel.dispatch_event("drop", {"dataTransfer": files})
    expect(panel.get_by_role("listitem")).to_have_count(2)
    expect(panel).to_contain_text("2 images added to input/concepts/my-toy.")
    expect(panel).to_contain_text('"c.gif" was left out')
    expect(panel).to_contain_text('"d.txt" was left out')
    assert names(concepts / "my-toy") == ["a.png", "a.txt", "b.png"]
    assert (concepts / "my-toy" / "b.png").read_bytes() == png("blue")
    assert page.evaluate(f"({FOLDER})().value") == "concepts/my-toy"
    assert "concepts/my-toy" in page.evaluate(f"({FOLDER})().options.values")
    expect(page.locator(".p-invalid, [aria-invalid=true]")).to_have_count(0)  # Vue nodes know the new folder, too
    expect(panel.get_by_label("Caption of a.png")).to_have_value("a red toy")

    page.evaluate(PASTE, transfer(page, image_png=png("lime")))
    expect(panel.get_by_role("listitem")).to_have_count(3)
    assert names(concepts / "my-toy") == ["a.png", "a.txt", "b.png", "image.png"]
    page.evaluate(PASTE, transfer(page, image_png=png("navy")))  # a clipboard has always the same name
    expect(panel.get_by_role("listitem")).to_have_count(4)
    assert (concepts / "my-toy" / "image.png").read_bytes() == png("lime")
    assert (concepts / "my-toy" / "image (1).png").read_bytes() == png("navy")
    assert page.evaluate("app.graph.nodes.length") == 1  # and no Load Image was added for them
    for picture in panel.get_by_role("img").all():
        assert picture.evaluate("async picture => { await picture.decode(); return picture.naturalWidth }") == 48


def test_images_for_another_node_do_not_mix_with_those_of_the_same_token(
    shown: Callable[..., tuple[Page, Locator]], concepts: Path
) -> None:
    in_folder(concepts / "my-toy", "old.png", "red")
    page, panel = shown(False, token="my-toy", folder="bundled: fox")
    expect(panel.get_by_role("listitem")).to_have_count(6)
    panel.dispatch_event("drop", {"dataTransfer": transfer(page, new_png=png("blue"))})
    expect(panel).to_contain_text("1 image added to input/concepts/my-toy-2.")
    assert names(concepts / "my-toy") == ["old.png"]
    assert names(concepts / "my-toy-2") == ["new.png"]


def test_images_are_dropped_on_the_node_and_picked_by_keyboard(
    shown: Callable[..., tuple[Page, Locator]], concepts: Path
) -> None:
    in_folder(concepts / "toys", "a.png", "red")
    page, panel = shown(False, folder="concepts/toys")
    title = """([transfer, kind]) => {
        const [node] = app.graph.nodes
        const { left, top } = app.canvas.canvas.getBoundingClientRect()
        const at = { clientX: left + node.pos[0] + 80, clientY: top + node.pos[1] - 12 }
        const event = new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true, ...at })
        app.canvas.canvas.dispatchEvent(event)
    }"""
    files = transfer(page, b_png=png("blue"))
    for kind in ("dragover", "drop"):
        page.evaluate(title, [files, kind])
    expect(panel.get_by_role("listitem")).to_have_count(2)
    with page.expect_file_chooser() as chosen:
        panel.get_by_role("button", name="Add images").focus()
        page.keyboard.press("Enter")
    chosen.value.set_files({"name": "c.png", "mimeType": "image/png", "buffer": png("lime")})
    expect(panel.get_by_role("listitem")).to_have_count(3)
    assert names(concepts / "toys") == ["a.png", "b.png", "c.png"]
    assert page.evaluate("app.graph.nodes.length") == 1


@both_renderers
def test_edited_caption_is_on_disk(vue: bool, shown: Callable[..., tuple[Page, Locator]], concepts: Path) -> None:
    in_folder(concepts / "toys", "a.png", "red")
    in_folder(concepts / "toys", "b.png", "blue")
    text = concepts / "toys" / "b.txt"
    page, panel = shown(vue, folder="concepts/toys", token="toy", class_noun="robot")
    expect(panel).to_contain_text("2 images are few: 3 to 20 images of the concept are best.")
    box = panel.get_by_label("Caption of b.png")
    expect(box).to_have_attribute("placeholder", "photo of a <toy> robot")
    box.fill("a blue  toy")
    expect(panel).to_contain_text("not saved yet")
    queued: list[str] = []
    page.on("request", lambda request: queued.append(request.url) if request.url.endswith("/prompt") else None)
    box.press("Control+Enter")
    expect(panel.get_by_text("saved", exact=True)).to_be_visible()
    assert text.read_text(encoding="utf-8") == "a blue toy\n"
    expect(box).to_have_attribute("title", "Trained under: photo of a <toy> robot, a blue toy")
    assert queued == []  # Ctrl+Enter runs the workflow elsewhere

    box.fill("")
    box.press("Tab")
    expect(panel.get_by_text("saved", exact=True)).to_be_visible()
    assert text.read_bytes() == b""
    text.write_text("by another program", encoding="utf-8")
    page.evaluate("app.refreshComboInNodes()")  # what R does
    expect(box).to_have_value("by another program")
    assert names(concepts / "toys") == ["a.png", "b.png", "b.txt"]


def test_bundled_samples_are_shown_and_not_edited(shown: Callable[..., tuple[Page, Locator]]) -> None:
    page, panel = shown(False, folder="bundled: fox", token="my-fox")
    expect(panel.get_by_role("listitem")).to_have_count(6)
    expect(panel.get_by_role("textbox")).to_have_count(0)
    expect(panel.get_by_text("photo of a <my-fox> animal")).to_have_count(6)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.wait_for_timeout(2000)
    assert [url for url in requests if "continual_lora" in url] == []  # nothing asks again and again
