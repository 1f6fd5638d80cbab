"""Write the bundled sample concepts: held-out subjects, one drawing in each style, with their attribution.

Six are shipped and reported on; six others, below benchmarks/, serve only to choose settings. With `--long`, fifty go
to build/long instead, for `python -m benchmarks long`; the six for choosing are not among them.
"""

import argparse
import json
from pathlib import Path

from scripts.tiny_base.emoji import RASTER_PACKAGES, SVG_PACKAGES, EmojiGrid, concept_names

# Subjects whose drawings agree, one of each class noun -> styles left out because they show something else.
SUBJECTS: dict[str, set[str]] = {
    "fox": set(),
    "penguin": {"blob"},  # the only blue one
    "sunflower": set(),
    "watermelon": set(),
    "hamburger": set(),
    "guitar": set(),
}

TUNING_SUBJECTS: dict[str, set[str]] = {
    "panda": set(),
    "octopus": set(),
    "rocket": set(),
    "cactus": set(),
    "strawberry": set(),
    "camera": set(),
}

# style -> project, authors, license, where the project lives
SOURCES: dict[str, tuple[str, str, str, str]] = {
    "noto": ("Noto Emoji", "Google LLC", "Apache-2.0", "googlefonts/noto-emoji on GitHub"),
    "blob": ("Noto Emoji, version 1 (the blobs)", "Google LLC", "Apache-2.0", "googlefonts/noto-emoji on GitHub"),
    "twemoji": ("Twemoji", "Twitter, Inc and other contributors", "CC-BY-4.0", "jdecked/twemoji on GitHub"),
    "flat": ("Fluent Emoji, flat", "Microsoft Corporation", "MIT", "microsoft/fluentui-emoji on GitHub"),
    "emojione": ("EmojiOne 2.3, continued as Emojitwo", "Emoji One", "CC-BY-4.0", "EmojiTwo/emojitwo on GitHub"),
    "3d": (
        "Fluent Emoji, 3D",
        "Microsoft Corporation; packaged by LobeHub",
        "MIT",
        "microsoft/fluentui-emoji and lobehub/fluent-emoji on GitHub",
    ),
}
LONG, NUM_LONG = Path("build/long"), 50
HEAD = """# Where the sample images come from

Each picture is one drawing of an emoji, rendered at 256 x 256 pixels on white; nothing else was changed. The file name
is the style. The drawings stay under their own licenses:

| file | project | version | authors | license | found at |
|---|---|---|---|---|---|
"""
TAIL = """
Apache-2.0 is the license of this pack: see `LICENSE` at its top.
CC-BY-4.0: <https://creativecommons.org/licenses/by/4.0/>.

MIT License

Copyright (c) Microsoft Corporation. Copyright (c) 2023 LobeHub (the 3D package).

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def attribution(node_modules: Path) -> str:
    """The table of sources, with the versions of the packages that were rendered."""
    rows = []
    for style, package in (SVG_PACKAGES | RASTER_PACKAGES).items():
        version = json.loads((node_modules / package / "package.json").read_text(encoding="utf-8"))["version"]
        project, authors, license, place = SOURCES[style]
        rows.append(f"| `{style}.png` | {project} | `{package}` {version} | {authors} | {license} | {place} |\n")
    return HEAD + "".join(rows) + TAIL


def write_samples(node_modules: Path, out: Path, subjects: dict[str, set[str]]) -> None:
    """Render the subjects into `out/<name>/<style>.png`, and write `samples.json` and `ATTRIBUTION.md`.

    Blanks in a name become dashes.
    """
    grid, nouns = EmojiGrid(node_modules), {name: noun for noun, name in concept_names("held_out")}
    for name, dropped in subjects.items():
        folder = out / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for style in SOURCES:
            if style not in dropped:
                grid.render(style, name).save(folder / f"{style}.png", optimize=True)
    listed = {name.replace(" ", "-"): nouns[name] for name in subjects}
    (out / "samples.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    (out / "ATTRIBUTION.md").write_text(attribution(node_modules), encoding="utf-8")


def long_subjects() -> dict[str, set[str]]:
    """Fifty held-out subjects in every style, class nouns in turn so that neighbors differ."""
    by_noun: dict[str, list[str]] = {}
    for noun, name in concept_names("held_out"):
        if name not in TUNING_SUBJECTS:
            by_noun.setdefault(noun, []).append(name)
    longest = max(map(len, by_noun.values()))
    turns = [names[turn] for turn in range(longest) for names in by_noun.values() if turn < len(names)]
    return {name: set() for name in turns[:NUM_LONG]}


def main() -> None:
    """Parse the arguments and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, help="where npm put the emoji packages")
    parser.add_argument("--long", action="store_true", help="fifty subjects into build/long, and nothing else")
    args = parser.parse_args()
    if args.long:
        write_samples(args.node_modules, LONG, long_subjects())
        return
    write_samples(args.node_modules, Path("trainer/bases/tiny/samples"), SUBJECTS)
    write_samples(args.node_modules, Path("benchmarks/tuning_concepts"), TUNING_SUBJECTS)


if __name__ == "__main__":
    main()
