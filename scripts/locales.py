"""Write the English texts that ComfyUI's page translates from: `python -m scripts.locales OBJECT_INFO.json`.

The argument is what a running server answers at /object_info. The other languages below `locales/` are written by hand
in the same shape; `tests/contract/test_locales.py` says what is missing or left over there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from .graph import PREFIX

FOLDER = Path(__file__).parents[1] / "locales"
Texts = dict[str, Any]


def node_texts(schema: dict[str, Any]) -> Texts:
    """What the page looks up of one node: its names and tooltips, inputs by name, outputs by position.

    Args:
        schema: of the node, from the server.
    """
    specs = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
    texts: Texts = {"display_name": schema["display_name"], "description": schema["description"]}
    inputs = {name: {"name": name, "tooltip": options["tooltip"]} for name, (_, options) in specs.items()}
    if inputs:
        texts["inputs"] = inputs
    named = zip(schema["output_name"], schema["output_tooltips"], strict=True)
    texts["outputs"] = {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(named)}
    return texts


def english(info: dict[str, Any]) -> Texts:
    """The texts of every node of the pack, by node id."""
    return {name: node_texts(info[name]) for name in sorted(info) if name.startswith(PREFIX)}


def main() -> None:
    """Write locales/en/nodeDefs.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("object_info", type=Path)
    info = json.loads(parser.parse_args().object_info.read_text(encoding="utf-8"))
    path = FOLDER / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(english(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
