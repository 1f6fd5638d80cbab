"""From the workflow that the page saves to the prompt that the server takes, as the page itself does it."""

from dataclasses import dataclass
from typing import Any

NOTES = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}
NEVER, BYPASS = 2, 4


@dataclass(frozen=True)
class Link:
    """One wire of the page: where it comes from."""

    node: int
    slot: int

    @classmethod
    def read(cls, link: Any) -> "tuple[int, Link]":
        """Links are lists (id, from, slot, to, slot, type) or, in the newer schema, objects."""
        if isinstance(link, dict):
            return link["id"], cls(link["origin_id"], link["origin_slot"])
        return link[0], cls(link[1], link[2])


def widget_inputs(schema: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of each input that the page draws as a widget, in the page's order."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in schema["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            is_widget = isinstance(kind, list) or kind in WIDGET_TYPES
            if is_widget and not options.get("forceInput"):
                found.append((name, kind, options))
    return found


def has_control(name: str, kind: Any, options: dict[str, Any]) -> bool:
    """Whether the page puts a "control after generate" widget behind this one."""
    return bool(options.get("control_after_generate", kind == "INT" and name in ("seed", "noise_seed")))


def widget_values(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets by input name.

    Raises:
        ValueError: there are more or fewer values than the node has widgets.
    """
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return {name: values[name] for name, *_ in widget_inputs(schema) if name in values}
    left, named = list(values), {}
    for name, kind, options in widget_inputs(schema):
        if not left:
            raise ValueError(f"Node {node['id']} ({node['type']}) has no value for `{name}` in {values}.")
        named[name] = left.pop(0)
        if has_control(name, kind, options) and left and left[0] in CONTROL_VALUES:
            left.pop(0)
        if any(key.endswith("_upload") for key in options) and left == ["image"]:
            left.pop(0)
    if left:
        raise ValueError(f"Node {node['id']} ({node['type']}) has more values than widgets: {left} of {values}.")
    return named


class _Graph:
    def __init__(self, workflow: dict[str, Any]) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        self.links = dict(Link.read(link) for link in workflow["links"])

    def source(self, link_id: int | None) -> Any:
        """What arrives over a link: [node, slot], a value in a list of its own, or None where nothing does."""
        link = self.links.get(link_id) if link_id is not None else None
        if link is None:
            return None
        node = self.nodes[link.node]
        mode = node.get("mode", 0)
        if node["type"] == "PrimitiveNode":
            return (node["widgets_values"][0],)
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0]["link"])
        if mode == BYPASS:
            kind = node["outputs"][link.slot]["type"]
            through = [i.get("link") for i in node["inputs"] if i["type"] == kind]
            return self.source(through[min(link.slot, len(through) - 1)]) if through else None
        return None if mode == NEVER else [str(link.node), link.slot]


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """Convert a workflow of the page to the API format.

    Args:
        workflow: `nodes`, `links`, as saved by the page.
        object_info: the server's schemas.

    Returns:
        Node id -> {"class_type", "inputs"}; notes, reroutes, primitives, muted and bypassed nodes are resolved.

    Raises:
        ValueError: a node the server does not know, or values that do not fit the schema.
    """
    graph, prompt = _Graph(workflow), {}
    for node in graph.nodes.values():
        kind = node["type"]
        if kind in NOTES | {"Reroute", "PrimitiveNode"} or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if kind not in object_info:
            raise ValueError(f"The server has no node `{kind}` (node {node['id']}).")
        inputs = widget_values(node, object_info[kind])
        for slot in node.get("inputs", ()):
            source = graph.source(slot.get("link"))
            if source is not None:
                inputs[slot["name"]] = source[0] if isinstance(source, tuple) else source
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt
