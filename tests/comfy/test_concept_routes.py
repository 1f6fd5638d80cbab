"""The routes of the panel of Load Concept Images, on a real server, with what a hostile page might send."""

import io
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.server import Client, Server
from trainer.concept import load_concept

from .test_workflows import load, of_kind, sequence_folder

CONCEPTS = "/continual_lora/concepts"
LONG = "x" * 300
OUTSIDE = [
    "",
    ".",
    "..",
    "../input",
    "../output",
    "pets/../..",
    "pets/rex/../../../output",
    "/",
    "/etc",
    "//server/share",
    "pets\0rex",
    "\ud83d",
    "bundled: ",
    "bundled: ..",
    "bundled: ../",
    "bundled: ../samples",
    "bundled: fox/..",
    "bundled: /etc",
    "link_out",
    "link_out/deep",
]
MISSING = [
    "pets",  # has no image, but is there: only its images are asked for below
    "\N{FOX FACE}",
    LONG,
    "C:\\Windows",
    "C:rex",
    "\\\\server\\share",
    "~",
    "%2e%2e",
    "..\\..",
    "bundled: cat",
    "loop",
    "(use the images input)",
]
NAMES = [
    "",
    ".",
    "..",
    "../rex/fox.png",
    "../../secret.png",
    "/etc/passwd",
    "fox",
    "FOX.png ",
    "fox.png\0",
    "fox.png/",
    "./fox.png",
    "fox.txt",
    ".hidden.png",
    "C:fox.png",
    "fox.png::$DATA",
    "\N{FOX FACE}.png",
    "\ud83d.png",
    LONG,
]


@pytest.fixture
def rex(server: Server, tmp_path: Path) -> Iterator[Path]:
    """input/pets/rex with two images, one of which has a caption, beside links out of input and a secret."""
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (16, 16), "blue").save(outside / "secret.png")
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    (outside / "deep").mkdir()
    root = server.base / "input"
    folder = root / "pets" / "rex"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 20), "red").save(folder / "fox.png")
    Image.new("RGB", (20, 40), "lime").save(folder / "toy.jpg")
    Image.new("RGB", (20, 20), "lime").save(folder / ".hidden.png")
    (folder / "fox.txt").write_text("a fox\nin snow\n", encoding="utf-8")
    (root / "link_out").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    yield folder
    shutil.rmtree(root / "pets")
    (root / "link_out").unlink()
    (root / "loop").unlink()


def ask(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Message]:
    """Status, body and headers of an answer, also of one that refuses."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(server.url + path, data=body, headers=named)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read(), refused.headers


def query(path: str, **values: str) -> str:
    return f"{path}?{urllib.parse.urlencode(values, errors='surrogatepass')}"


def listing(server: Server, folder: str) -> dict[str, Any]:
    status, body, _ = ask(server, query(CONCEPTS, folder=folder))
    assert status == 200, body
    return json.loads(body)


def save(server: Server, values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"folder": "pets/rex", "name": "fox.png", "before": "a fox in snow", "caption": "new"} | values)
    status, answer, _ = ask(server, f"{CONCEPTS}/caption", body.encode(), Content_Type="application/json")
    return status, json.loads(answer)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_refused(status: int, answer: dict[str, Any]) -> None:
    """In words of three sentences or more, and no page of an error inside the server."""
    assert 400 <= status < 500, answer
    assert set(answer) == {"error"}
    assert answer["error"].endswith(".")
    assert answer["error"].count(". ") >= 2


# Reading


def test_images_are_listed_with_sizes_and_captions(server: Server, rex: Path) -> None:
    found = listing(server, "pets/rex")
    assert (found["editable"], found["total"]) == (True, 2)
    fox, toy = found["images"]
    assert (fox["name"], fox["caption"], fox["width"], fox["height"]) == ("fox.png", "a fox in snow", 40, 20)
    assert (toy["name"], toy["caption"], toy["width"], toy["height"]) == ("toy.jpg", "", 20, 40)
    assert fox["problem"] == toy["problem"] == ""
    Image.new("RGB", (50, 20), "red").save(rex / "fox.png")
    assert listing(server, "pets/rex")["images"][0]["version"] != fox["version"]
    assert listing(server, "pets/rex")["images"][1] == toy


def test_folder_without_images_is_an_empty_list(server: Server, rex: Path) -> None:
    assert listing(server, "pets") == {"editable": True, "total": 0, "images": []}


def test_bundled_samples_are_listed_and_not_editable(server: Server) -> None:
    found = listing(server, "bundled: fox")
    assert found["editable"] is False
    assert found["total"] == len(found["images"]) == 6


def test_what_is_wrong_with_an_image_is_said_beside_it(server: Server, rex: Path, tmp_path: Path) -> None:
    (rex / "broken.png").write_bytes(b"no image")
    (rex / "fox.txt").write_bytes(b"\xff\xfe\xfd")
    (rex / "stolen.png").symlink_to(tmp_path / "outside" / "secret.png")
    (rex / "toy.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    found = {image["name"]: image for image in listing(server, "pets/rex")["images"]}
    assert "must be a readable image" in found["broken.png"]["problem"]
    assert str(server.base) not in json.dumps(found)
    assert "must be text in UTF-8" in found["fox.png"]["problem"]
    for name in ("stolen.png", "toy.jpg"):
        assert "It leads out of it." in found[name]["problem"]
        assert found[name]["caption"] == ""
    assert found["stolen.png"]["version"] == ""
    status, body, _ = ask(server, query(f"{CONCEPTS}/thumbnail", folder="pets/rex", name="stolen.png"))
    is_refused(status, json.loads(body))


def test_thumbnail_is_small_and_kept_as_long_as_the_file_is_the_same(server: Server, rex: Path) -> None:
    Image.new("RGB", (2000, 1000), "red").save(rex / "fox.png")
    version = listing(server, "pets/rex")["images"][0]["version"]
    named = {"folder": "pets/rex", "name": "fox.png"}
    status, body, headers = ask(server, query(f"{CONCEPTS}/thumbnail", **named, version=version))
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert "immutable" in headers["Cache-Control"]
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.size == (512, 256)
    _, _, headers = ask(server, query(f"{CONCEPTS}/thumbnail", **named, version="another"))
    assert headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("folder", [*OUTSIDE, *MISSING], ids=ascii)
def test_hostile_folder_is_neither_read_nor_written(folder: str, server: Server, rex: Path, tmp_path: Path) -> None:
    before = files(server.base / "input"), files(tmp_path / "outside"), files(server.base / "output")
    paths = [query(f"{CONCEPTS}/thumbnail", folder=folder, name="secret.png")]
    paths += [query(CONCEPTS, folder=folder)] if folder != "pets" else []
    for path in paths:
        status, body, _ = ask(server, path)
        is_refused(status, json.loads(body))
    for name in ("fox.png", "secret.png", "3d.png"):
        is_refused(*save(server, {"folder": folder, "name": name, "before": ""}))
    assert (files(server.base / "input"), files(tmp_path / "outside"), files(server.base / "output")) == before


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_hostile_name_is_neither_read_nor_written(name: str, server: Server, rex: Path) -> None:
    before = files(server.base / "input")
    status, body, _ = ask(server, query(f"{CONCEPTS}/thumbnail", folder="pets/rex", name=name))
    is_refused(status, json.loads(body))
    is_refused(*save(server, {"name": name}))
    is_refused(*save(server, {"name": name, "before": ""}))
    assert files(server.base / "input") == before


# Writing captions


def test_caption_is_written_and_nothing_else(server: Server, rex: Path) -> None:
    before = files(server.base / "input")
    assert save(server, {"caption": " a  fox \N{FOX FACE}\n"}) == (200, {"caption": "a fox \N{FOX FACE}"})
    written = "a fox \N{FOX FACE}\n".encode()
    assert files(server.base / "input") == before | {"pets/rex/fox.txt": written}
    assert save(server, {"name": "toy.jpg", "before": "", "caption": ""}) == (200, {"caption": ""})
    assert files(server.base / "input") == before | {"pets/rex/fox.txt": written}
    assert save(server, {"before": "a fox \N{FOX FACE}", "caption": ""}) == (200, {"caption": ""})
    assert files(server.base / "input") == before | {"pets/rex/fox.txt": b""}
    assert listing(server, "pets/rex")["images"][0]["caption"] == ""


def test_caption_that_changed_on_disk_is_not_overwritten(server: Server, rex: Path) -> None:
    status, answer = save(server, {"before": "what the page shows"})
    assert status == 409
    is_refused(status, answer)
    assert (rex / "fox.txt").read_text(encoding="utf-8") == "a fox\nin snow\n"


def test_caption_of_a_bundled_sample_is_not_written(server: Server) -> None:
    status, answer = save(server, {"folder": "bundled: fox", "name": "3d.png", "before": ""})
    assert status == 403
    is_refused(status, answer)


def test_links_in_the_place_of_captions_are_left_alone(server: Server, rex: Path, tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "secret.txt"
    toy = {"name": "toy.jpg", "before": ""}
    for target in (secret, rex / "fox.txt", tmp_path / "outside" / "missing.txt"):
        (rex / "toy.txt").symlink_to(target)
        for before in ("", "secret", "a fox in snow"):
            is_refused(*save(server, toy | {"before": before}))
        (rex / "toy.txt").unlink()
    assert files(tmp_path / "outside").keys() == {"secret.png", "secret.txt"}
    assert secret.read_text(encoding="utf-8") == "secret"
    assert (rex / "fox.txt").read_text(encoding="utf-8") == "a fox\nin snow\n"


@pytest.mark.parametrize(
    "values",
    [
        {"caption": None},
        {"caption": 3},
        {"caption": ["a"]},
        {"name": {"a": 1}},
        {"folder": None},
        {"before": None},
        {"caption": "a\0b"},
        {"caption": "\ud83d"},
        {"caption": "\x1b[0m"},
        {"caption": "x" * 10_001},
        {"caption": "x" * 200_000},
    ],
    ids=lambda values: ascii(values)[:30],
)
def test_broken_request_writes_nothing(values: dict[str, Any], server: Server, rex: Path) -> None:
    before = files(rex)
    is_refused(*save(server, values))
    assert files(rex) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 50_000], ids=lambda body: ascii(body)[:9])
def test_body_that_is_no_json_object_is_refused(body: bytes, server: Server) -> None:
    status, answer, _ = ask(server, f"{CONCEPTS}/caption", body, Content_Type="application/json")
    is_refused(status, json.loads(answer))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_form_of_a_foreign_page_is_refused(kind: str, server: Server, rex: Path) -> None:
    body = json.dumps({"folder": "pets/rex", "name": "fox.png", "before": "a fox in snow", "caption": "new"}).encode()
    status, answer, _ = ask(server, f"{CONCEPTS}/caption", body, Content_Type=kind)
    assert status == 415
    is_refused(status, json.loads(answer))
    status, *_ = ask(
        server, f"{CONCEPTS}/caption", body, Content_Type="application/json", Origin="http://elsewhere.example"
    )
    assert status == 403
    assert (rex / "fox.txt").read_text(encoding="utf-8") == "a fox\nin snow\n"


# What the node makes of it


def test_saved_caption_is_what_the_node_reads(client: Client, server: Server, rex: Path) -> None:
    quickstart = load(client, "quickstart_cpu")
    train, _ = of_kind(quickstart, "ContinualLoRA_Train")
    inputs = {**quickstart[train]["inputs"], "sequence_name": "captions", "steps": 1, "rank": 2, "recipe": "lora"}
    prompt = {n: node for n, node in quickstart.items() if n in {v[0] for v in inputs.values() if isinstance(v, list)}}
    (loader,) = of_kind(prompt, "ContinualLoRA_LoadConceptImages")
    prompt[loader]["inputs"] |= {"folder": "pets/rex", "token": "rex", "class_noun": "fox"}
    prompt["train"] = {"class_type": "ContinualLoRA_Train", "inputs": inputs}

    def trained() -> tuple[bool, list[list[str]]]:
        """Whether the images were read again, and the digests of the tasks in the order of their training."""
        done = client.run(prompt)
        assert done.status == "success", done.error
        assert loader not in done.outputs  # the pictures of a folder are in the panel, not once more below it
        manifest = json.loads((sequence_folder(server, "captions") / "manifest.json").read_text(encoding="utf-8"))
        return loader not in done.cached, [task["image_digests"] for task in manifest["tasks"].values()]

    def now() -> tuple[list[str], list[str]]:
        """What the folder is to be trained under, and its digests."""
        concept = load_concept(rex, token="rex", class_noun="fox")
        return concept.prompts, concept.digests

    prompts, first = now()
    assert prompts == ["photo of a <rex> fox, a fox in snow", "photo of a <rex> fox"]
    assert trained() == (True, [first])
    assert trained() == (False, [first])
    assert save(server, {"caption": "<{token}> asleep"})[0] == 200
    prompts, second = now()
    assert prompts == ["<rex> asleep", "photo of a <rex> fox"]
    assert second[0] != first[0] and second[1] == first[1]
    assert trained() == (True, [first, second])
