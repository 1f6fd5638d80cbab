"""The help page of a node, as ComfyUI's page shows it."""

from playwright.sync_api import Page

from .pages import open_workflow, workflow

SELECT = """kind => {
    const node = app.graph.nodes.find(node => node.type === kind)
    app.canvas.centerOnNode(node)
    app.canvas.selectNode(node)
}"""


def test_help_page_shows_its_picture(page: Page) -> None:
    kind = "ContinualLoRA_ClassifierScore"
    open_workflow(page, workflow("classify_with_dc_scores_cpu"))
    page.evaluate(SELECT, kind)
    page.get_by_test_id("info-button").click()
    page.get_by_role("heading", name="What it does not do").wait_for()
    picture = page.locator(f"img[src$='/docs/images/{kind}.jpg']")
    assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") >= 300
