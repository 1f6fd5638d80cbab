"""What the server tells the concept-sequence panel, and what it refuses, over HTTP."""

import csv
import io
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.server import Client, Server
from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.disk.sequence import ConceptSequence
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.pictures import Artist
from trainer.evaluation.report import write_evaluation
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)


class MeanColors:
    name = "mean colors"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean((2, 3)) - 0.4, dim=1)


def draw(line: ConceptSequence, prompts: list[str]) -> Any:
    for prompt in prompts:
        yield torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(10 * len(line.tasks) + len(prompt)))


@pytest.fixture(scope="module")
def sequences(server: Server) -> Path:
    """The server's folder of sequences, with two tasks and an evaluation in `route pets`."""
    folder = server.base / "output" / "continual_lora"
    line = ConceptSequence.create(folder / "route pets", ToyBase(UNET).fingerprint)
    for seed, word in enumerate(("fox", "cat")):
        line = teach(ToyBase(UNET), toy_concept(word, seed=seed), toy_settings(), line)
    write_evaluation(evaluate(line, Artist(draw, {"seed": 1}), MeanColors(), lambda: ToyBase(UNET), 0, 0))
    return folder


def ask(client: Client, route: str, **query: Any) -> Any:
    return client.get(f"/continual_lora/{route}?{urllib.parse.urlencode(query)}")


def refusal(client: Client, route: str, **query: Any) -> str:
    """The error that the server answers with status 400."""
    with pytest.raises(urllib.error.HTTPError) as found:
        ask(client, route, **query)
    with found.value as answer:
        assert answer.code == 400
        return str(json.loads(answer.read())["error"])


def test_tasks_and_the_evaluation_of_a_sequence(client: Client, sequences: Path) -> None:
    tasks = ask(client, "sequence", choice="route pets")
    assert tasks["num_tasks"] == 2 and [task["token"] for task in tasks["tasks"]] == ["fox", "cat"]
    assert [task["token"] for task in ask(client, "sequence", choice="route pets", first=2, count=1)["tasks"]] == [
        "cat"
    ]
    found = ask(client, "evaluation", choice="route pets")
    assert found["encoder"] == "mean colors" and found["num_tasks"] == 2
    (table,) = (sequences / "route pets" / "evaluation" / "reports").glob("*/table.csv")
    with table.open(encoding="utf-8", newline="") as file:
        expected = [float(row["mmd"]) for row in csv.DictReader(file)]
    assert [cell["scores"]["mmd"] for row in found["rows"] for cell in row["cells"]] == expected
    named = ask(client, "evaluation", choice="route pets", evaluation=found["evaluation"], first=2)
    assert [row["after_task"] for row in named["rows"]] == [2]
    assert ask(client, "evaluation", choice=f"route pets / {tasks['tasks'][0]['folder']}") == {"evaluation": None}


def test_every_picture_that_is_named_is_sent(client: Client, sequences: Path) -> None:
    task, found = (
        ask(client, "sequence", choice="route pets")["tasks"][0],
        ask(client, "evaluation", choice="route pets"),
    )
    drawn = [name for row in found["rows"] for cell in row["cells"] for name in cell["images"]]
    assert len(drawn) == 6
    for name in [*task["images"], *drawn]:
        query = urllib.parse.urlencode({"choice": "route pets", "name": name, "side": 64})
        with Image.open(io.BytesIO(client.fetch(f"/continual_lora/picture?{query}"))) as picture:
            assert picture.format == "WEBP" and picture.size == (8, 8)


@pytest.mark.parametrize("route", ["sequence", "evaluation", "picture"])
@pytest.mark.parametrize(
    "choice",
    ["", "..", "../route pets", "/etc", "route pets\x00", "linked", "\N{FOX FACE}", "a" * 300, "a / ../../b"],
    ids=ascii,
)
def test_hostile_choices_are_refused(client: Client, sequences: Path, tmp_path: Path, route: str, choice: str) -> None:
    shutil.copytree(sequences / "route pets", tmp_path / "elsewhere")
    link = sequences / "linked"
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    (name,) = [str(path.relative_to(tmp_path / "elsewhere")) for path in tmp_path.glob("*/tasks/01-*/images/001.png")]
    assert "should" in refusal(client, route, choice=choice, name=name)


@pytest.mark.parametrize(
    "name", ["", "manifest.json", "../x.png", "/etc/passwd", "tasks/../images/x\x00.png"], ids=ascii
)
def test_other_files_are_not_sent(client: Client, sequences: Path, name: str) -> None:
    assert "should" in refusal(client, "picture", choice="route pets", name=name)


@pytest.mark.parametrize("name", ["..", "../../tasks", "x\x00", "a" * 300], ids=ascii)
def test_other_evaluations_are_refused(client: Client, sequences: Path, name: str) -> None:
    assert "should" in refusal(client, "evaluation", choice="route pets", evaluation=name)


def test_a_page_is_never_everything(client: Client, sequences: Path) -> None:
    assert '"count" should be a whole number from 1 to 100' in refusal(
        client, "sequence", choice="route pets", count=1000
    )
    assert '"side" should be' in refusal(
        client,
        "picture",
        choice="route pets",
        name=ask(client, "sequence", choice="route pets")["tasks"][0]["images"][0],
        side=100_000,
    )


def test_a_damaged_manifest_is_said_in_three_facts(client: Client, sequences: Path) -> None:
    (sequences / "route damaged").mkdir()
    (sequences / "route damaged" / "manifest.json").write_text('{"format_version": 1, "tasks": {}, "head": "x"}')
    said = refusal(client, "sequence", choice="route damaged")
    assert "should be the list of the sequence's tasks" in said and "`base`" in said and "Undo the change" in said


def test_nothing_is_written(client: Client, sequences: Path) -> None:
    before = files_below(sequences / "route pets")
    name = ask(client, "sequence", choice="route pets")["tasks"][0]["images"][0]
    ask(client, "evaluation", choice="route pets")
    client.fetch("/continual_lora/picture?" + urllib.parse.urlencode({"choice": "route pets", "name": name}))
    with pytest.raises(urllib.error.HTTPError, match="405"):
        client.post("/continual_lora/sequence?choice=route+pets")
    assert files_below(sequences / "route pets") == before


def test_the_page_gets_the_panel_as_modules(client: Client, server: Server) -> None:
    assert "/extensions/continual_lora/sequence_panel.js" in client.get("/extensions")
    for name in ("sequence_panel.js", "lib/sequence_view.js"):
        with urllib.request.urlopen(f"{server.url}/extensions/continual_lora/{name}", timeout=60) as answer:
            assert answer.headers.get_content_type() in ("application/javascript", "text/javascript")
            # Else a browser would run parts of an older version of the pack beside the newer ones.
            assert answer.headers["Cache-Control"] in ("no-cache", "no-store")
