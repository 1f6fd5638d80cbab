"""Fixtures around a headless Chromium that shows the page of one real ComfyUI server.

`page` is ComfyUI's page, loaded, in a browser without memory; `open_page` takes settings of the user. At the end of
each test there is a picture of every page in build/screenshots, and the test fails if the console holds an error that
is not one of ComfyUI's own.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.server import Server

from .host_errors import is_of_the_host

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome")
# No GPU, no sandbox (CI is root in a container), and nothing that asks the network on its own.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 1000.0
PATIENCE = 120 * SECONDS  # as playwright counts; a busy machine takes half a minute for the page alone
# Not a new user, whom the page greets with templates; texts on nodes however small they are drawn; and no word on which
# versions of the host's packages go together.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.0.0",
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.VersionCompatibility.DisableWarnings": True,
}
# The page shows a workflow, be it an empty one.
LOADED = "() => window.app?.extensionManager?.workflow?.activeWorkflow"


@pytest.fixture(scope="session")
def server(comfy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(comfy_path, tmp_path_factory.mktemp("comfyui"), ROOT) as server:
        yield server


# By module, because playwright's event loop is in the way of every other one for as long as it lives.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.fail(
            f"The tests in tests/browser need Chromium, and there is no {', '.join(NAMES)} on this machine. "
            "Install it, on Debian with `apt-get install chromium fonts-dejavu-core`.",
            pytrace=False,
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[..., Page]]:
    """Opens ComfyUI's page as a user with `settings` beside those above; None leaves one of them out."""
    pages: list[Page] = []
    errors: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and not is_of_the_host(message.text, message.location["url"]):
            errors.append(f"{message.text} ({message.location['url']})")

    def opened(settings: dict[str, Any] | None = None) -> Page:
        own = {name: value for name, value in (SETTINGS | (settings or {})).items() if value is not None}
        file = server.base / "user" / "default" / "comfy.settings.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(own), encoding="utf-8")
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("console", listen)
        page.on("pageerror", lambda error: errors.append(str(error)))
        pages.append(page)
        page.goto(server.url)
        page.wait_for_function(LOADED)
        return page

    yield opened
    for number, page in enumerate(pages, 1):
        photograph(page, request.node.name + (f"_{number}" if len(pages) > 1 else ""))
        page.close()
    assert errors == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """ComfyUI's page with the default settings."""
    return open_page()


def photograph(page: Page, name: str) -> None:
    """A picture of the page as build/screenshots/<name>.png, the name without what file names do without."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    file = re.sub(r"\W+", "_", name).strip("_")
    page.screenshot(path=SCREENSHOTS / f"{file}.png", timeout=PATIENCE)
