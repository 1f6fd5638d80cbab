"""Graphs in the format that ComfyUI's page saves, made from what a running server says of its nodes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PREFIX = "ContinualLoRA_"
TITLE, PADDING = 30, 20  # heights in the page: of a node's title, around the nodes of a group
# What panels of the pack add below a node's own widgets when the page opens it.
ROOM = {
    f"{PREFIX}Train": 330,
    f"{PREFIX}LoadSequence": 300,
    f"{PREFIX}EvaluateSequence": 440,
}
Node = dict[str, Any]


@dataclass
class Graph:
    """A workflow in the making.

    Args:
        info: of every node class, from the server.
    """

    info: dict[str, Any]
    nodes: list[Node] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, kind: str, pos: tuple[int, int], size: tuple[int, int] = (320, 120), title: str = "", **values: Any
    ) -> Node:
        """A node; a value that is (node, output index) becomes a link, any other one a widget's value."""
        schema = self.info[kind]
        names = [*schema["input_order"].get("required", []), *schema["input_order"].get("optional", [])]
        specs = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
        unknown = set(values) - set(names)
        assert not unknown, f"{kind} has no input {unknown}"
        node = self._node(kind, pos, size, {"Node name for S&R": kind})
        node["outputs"] = [
            {"name": name, "type": kind_of, "links": []}
            for name, kind_of in zip(schema["output_name"], schema["output"], strict=True)
        ]
        if title:
            node["title"] = title
        for name in names:
            kind_of, options = specs[name][0], (specs[name][1] if len(specs[name]) > 1 else {})
            if isinstance(kind_of, list) or kind_of in WIDGET_TYPES:
                self._widget(node, name, kind_of, options, values)
            else:
                self._socket(node, name, kind_of, values.get(name))
        rows = max(len(node["inputs"]), len(node["outputs"]))
        node["size"][1] = max(node["size"][1], 20 * rows + 24 * len(node["widgets_values"]) + 14)  # as the page does
        return node

    def _node(self, kind: str, pos: tuple[int, int], size: tuple[int, int], properties: dict[str, Any]) -> Node:
        node = {
            "id": len(self.nodes) + 1,
            "type": kind,
            "pos": list(pos),
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": properties,
            "widgets_values": [],
        }
        self.nodes.append(node)
        return node

    def _widget(self, node: Node, name: str, kind: Any, options: dict[str, Any], values: dict[str, Any]) -> None:
        if name not in values and "default" not in options:
            values = {name: kind[0] if isinstance(kind, list) else options["options"][0]}
        node["widgets_values"].append(values.get(name, options.get("default")))
        if options.get("control_after_generate", name in ("seed", "noise_seed")):  # as the page does
            node["widgets_values"].append("fixed")

    def _socket(self, node: Node, name: str, kind: str, source: Any) -> None:
        socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
        if source is not None:
            origin, index = source
            socket["link"] = len(self.links) + 1
            output = origin["outputs"][index]
            output["links"].append(socket["link"])
            self.links.append([socket["link"], origin["id"], index, node["id"], len(node["inputs"]), output["type"]])
        node["inputs"].append(socket)

    def note(self, text: str, pos: tuple[int, int] = (0, -230), size: tuple[int, int] = (740, 190)) -> None:
        """A note that explains the graph."""
        node = self._node("MarkdownNote", pos, size, {})
        node |= {"widgets_values": [text], "color": "#432", "bgcolor": "#653"}

    def group(self, title: str, nodes: list[Node], color: str = "#3f789e") -> None:
        """A frame around nodes, with the room that their panels take."""
        left = min(node["pos"][0] for node in nodes) - PADDING
        top = min(node["pos"][1] for node in nodes) - TITLE - 2 * PADDING - 10
        right = max(node["pos"][0] + node["size"][0] for node in nodes) + PADDING
        bottom = max(node["pos"][1] + node["size"][1] + ROOM.get(node["type"], 0) for node in nodes) + PADDING
        frame = {"title": title, "bounding": [left, top, right - left, bottom - top], "color": color}
        self.groups.append({"id": len(self.groups) + 1, **frame, "font_size": 24, "flags": {}})

    def content(self) -> dict[str, Any]:
        """What the page would save."""
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def save(self, name: str) -> None:
        """Write workflows/<name>.json."""
        (FOLDER / f"{name}.json").write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")
