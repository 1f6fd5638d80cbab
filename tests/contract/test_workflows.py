"""The bundled workflows fit the nodes' schemas, open without a missing node, and can be read."""

import json
import re
from dataclasses import fields
from itertools import combinations

import pytest
from PIL import Image

from scripts.graph import ROOM, TITLE
from trainer.settings import TrainSettings

from .test_docs import BY_ID, PREFIX, ROOT, text_of

AFTER_SEED = {"fixed", "increment", "decrement", "randomize"}
CORE_NODES = {
    "CheckpointLoaderSimple",
    "CLIPTextEncode",
    "EmptyLatentImage",
    "KSampler",
    "MarkdownNote",
    "PreviewAny",
    "PreviewImage",
    "SaveImage",
    "VAEDecode",
}
NAMES = {
    "quickstart_cpu",
    "sequential_concepts_sd15",
    "sequential_concepts_sdxl",
    "multi_concept_sd15",
    "which_method_forgets_least_cpu",
    "classify_with_dc_scores_cpu",
}
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_workflows_are_there():
    assert {path.stem for path in WORKFLOWS} == NAMES


def test_readme_names_each_workflow():
    assert [name for name in NAMES if f"`{name}" not in text_of("README.md").replace("workflows/", "")] == []


@each_workflow
def test_thumbnail_is_a_small_square(path):
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 80_000
    with Image.open(thumbnail) as image:
        assert image.format == "JPEG" and image.width == image.height >= 400


@each_workflow
def test_note_explains_the_workflow_in_four_lines(path):
    (note,) = [node for node in read(path)["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    head, *steps, last = [line for line in text.splitlines() if line]
    assert re.fullmatch(r"\*\*.+\*\*", head)
    assert [step[:2] for step in steps] == ["1.", "2.", "3."] and last


def box(node):
    """Left, top, right, bottom of a node in the page, its title and the panels below its widgets included."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height + ROOM.get(node["type"], 0)


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@each_workflow
def test_nothing_overlaps(path):
    graph = read(path)
    for one, other in combinations(graph["nodes"], 2):
        assert not overlap(box(one), box(other)), (one["id"], other["id"])
    frames = [(x, y, x + width, y + height) for x, y, width, height in (g["bounding"] for g in graph["groups"])]
    for one, other in combinations(frames, 2):
        assert not overlap(one, other)


@each_workflow
def test_each_node_but_the_note_is_inside_a_group(path):
    graph = read(path)
    for node in graph["nodes"]:
        left, top, right, bottom = box(node)
        around = [
            title
            for title, (x, y, width, height) in ((g["title"], g["bounding"]) for g in graph["groups"])
            if x <= left and y <= top and right <= x + width and bottom <= y + height
        ]
        assert len(around) == (node["type"] != "MarkdownNote"), node["type"]


@each_workflow
def test_workflow_reads_from_left_to_right(path):
    graph = read(path)
    x = {node["id"]: node["pos"][0] for node in graph["nodes"]}
    assert [link for link in graph["links"] if x[link[1]] > x[link[3]]] == []


@each_workflow
def test_workflow_has_only_known_nodes(path):
    kinds = {node["type"] for node in read(path)["nodes"]}
    assert kinds <= CORE_NODES | set(BY_ID)
    assert "MarkdownNote" in kinds


@each_workflow
def test_links_of_a_workflow_are_consistent(path):
    graph = read(path)
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    assert len(nodes) == len(graph["nodes"])
    assert len(links) == len(graph["links"])
    assert graph["last_node_id"] >= max(nodes)
    assert graph["last_link_id"] >= max(links)
    for key, source, out, target, into, kind in links.values():
        output, socket = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert key in output["links"]
        assert socket["link"] == key
        assert output["type"] == kind and socket["type"] in (kind, "*")
    used = [key for node in nodes.values() for output in node["outputs"] for key in output["links"] or []]
    taken = [socket["link"] for node in nodes.values() for socket in node["inputs"] if socket["link"] is not None]
    assert sorted(used) == sorted(taken) == sorted(links)


def widget_values(node, schema):
    """Name -> value of a node's widgets; the page puts a choice of its own after each seed."""
    widgets = [item for item in schema.inputs if item.is_widget]
    widgets.sort(key=lambda item: item.optional)
    values, left = {}, list(node["widgets_values"])
    for item in widgets:
        assert left, f"{node['type']} lacks a value for {item.name}"
        values[item.name] = left.pop(0)
        if item.name == "seed" and left and left[0] in AFTER_SEED:
            assert left.pop(0) == "fixed", "another seed each time would never find a finished task again"
    assert not left, f"{node['type']} has values for no widget: {left}"
    return values


@each_workflow
def test_workflow_fits_the_schemas(path):
    for node in read(path)["nodes"]:
        if (schema := BY_ID.get(node["type"])) is None:
            continue
        sockets = {socket["name"]: socket["link"] for socket in node["inputs"]}
        assert set(sockets) <= {item.name for item in schema.inputs}
        needed = {item.name for item in schema.inputs if not item.is_widget and not item.optional}
        assert {name for name, link in sockets.items() if link is not None} >= needed
        assert [output["name"] for output in node["outputs"]] == schema.outputs
        values = widget_values(node, schema)
        own = {item.name: values[item.name] for item in fields(TrainSettings) if item.name in values}
        if schema.id in (f"{PREFIX}Train", f"{PREFIX}TrainOptions"):
            assert own
            TrainSettings(**own)  # raises where a value is out of its range
            for item in fields(TrainSettings):
                if item.name in own:
                    number = (int, float) if isinstance(item.default, float) else type(item.default)
                    assert isinstance(own[item.name], number), item.name
                    assert isinstance(own[item.name], bool) == isinstance(item.default, bool), item.name
