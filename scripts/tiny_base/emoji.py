"""The emoji grid: one drawing of each concept in each of six styles, from npm packages on disk."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import resvg_py
from PIL import Image

# style word in captions -> npm package
SVG_PACKAGES = {
    "noto": "@iconify-json/noto",
    "blob": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "flat": "@iconify-json/fluent-emoji-flat",
    "emojione": "@iconify-json/emojione",
}
RASTER_PACKAGES = {"3d": "@lobehub/fluent-emoji-3d"}
STYLES = (*SVG_PACKAGES, *RASTER_PACKAGES)
CONCEPTS = Path(__file__).with_name("concepts.json")
RENDER_SIZE = 256


@dataclass(frozen=True)
class Drawing:
    """One concept in one style: where it is and how to call it."""

    noun: str
    name: str
    style: str
    image: Image.Image  # RGB, RENDER_SIZE squared, on white


def concept_names(split: str) -> list[tuple[str, str]]:
    """(class noun, name) of every concept of a split, "seen" or "held_out", in the order of the list."""
    listed: dict[str, list[str]] = json.loads(CONCEPTS.read_text(encoding="utf-8"))[split]
    return [(noun, name) for noun, names in listed.items() for name in names]


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA").resize((RENDER_SIZE, RENDER_SIZE), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


class EmojiGrid:
    """Finds and renders drawings below a `node_modules` folder.

    Args:
        node_modules: where npm installed the packages of SVG_PACKAGES, RASTER_PACKAGES and `emojibase-data`.
    """

    def __init__(self, node_modules: Path) -> None:
        self._root = node_modules
        self._icons = {style: self._json(package, "icons.json") for style, package in SVG_PACKAGES.items()}
        self._chars = [self._json(package, "chars.json") for package in SVG_PACKAGES.values()]
        entries = json.loads((node_modules / "emojibase-data/en/data.json").read_text(encoding="utf-8"))
        self._hexcodes = {entry["label"]: entry["hexcode"].lower() for entry in entries}

    def _json(self, package: str, file: str) -> dict[str, dict[str, dict[str, str]]]:
        loaded: dict[str, dict[str, dict[str, str]]] = json.loads(
            (self._root / package / file).read_text(encoding="utf-8")
        )
        return loaded

    def _codes(self, name: str) -> list[str]:
        code = self._hexcodes[name]
        return [code, code.replace("-fe0f", "")]

    def _svg(self, style: str, name: str) -> str:
        pack = self._icons[style]
        for chars in self._chars:
            for code in self._codes(name):
                icon = str(chars.get(code, ""))
                icon = pack.get("aliases", {}).get(icon, {}).get("parent", icon)
                if icon in pack["icons"]:
                    body = pack["icons"][icon]["body"]
                    width, height = pack.get("width", 16), pack.get("height", 16)
                    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{body}</svg>'
        raise KeyError(f"{style} has no drawing of {name}")

    def render(self, style: str, name: str) -> Image.Image:
        """The drawing of `name` in `style`, RGB on white."""
        if style in SVG_PACKAGES:
            png = resvg_py.svg_to_bytes(svg_string=self._svg(style, name), width=RENDER_SIZE, height=RENDER_SIZE)
            return _on_white(Image.open(io.BytesIO(bytes(png))))
        folder = self._root / RASTER_PACKAGES[style] / "assets"
        path = next(folder / f"{code}.webp" for code in self._codes(name) if (folder / f"{code}.webp").exists())
        return _on_white(Image.open(path))

    def drawings(self, split: str) -> list[Drawing]:
        """Every concept of the split in every style, styles fastest."""
        return [
            Drawing(noun, name, style, self.render(style, name))
            for noun, name in concept_names(split)
            for style in STYLES
        ]
