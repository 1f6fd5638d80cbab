"""Make the photographic set of `python -m benchmarks photos`: cut-outs of Tux Paint stamps, five views of each.

The stamps are real photographs with transparency that the embedded base has never seen. They come with Debian's
package `tuxpaint-stamps-default` (GPL-2; not bundled here):

    apt-get download tuxpaint-stamps-default
    dpkg -x tuxpaint-stamps-default_*.deb build/tuxpaint
    python -m scripts.photos
"""

import argparse
import json
from pathlib import Path

from PIL import Image

STAMPS = Path("build/tuxpaint/usr/share/tuxpaint/stamps")
OUT = Path("build/photos")
SIDE = 256
# subject -> its stamp, and a class noun that the embedded base knows
SUBJECTS: dict[str, tuple[str, str]] = {
    "rubber-duck": ("household/rubberduck", "duck"),
    "owl": ("animals/birds/owl", "bird"),
    "rose": ("plants/flowers/rose", "plant"),
    "beetle": ("vehicles/auto/beetle", "car"),
    "pineapple": ("food/fruit/pineapple", "fruit"),
    "pitcher": ("household/dishes/pitcher_small", "bottle"),
    "basketball": ("sports/basketball", "ball"),
    "fire-engine": ("vehicles/emergency/firetruck", "truck"),
}
# degrees, share of the side, mirrored: what a person would photograph a second time
VIEWS: tuple[tuple[float, float, bool], ...] = (
    (0, 0.95, False),
    (0, 0.95, True),
    (12, 0.85, False),
    (-12, 0.85, True),
    (0, 0.7, False),
)


def view(stamp: Image.Image, degrees: float, share: float, mirrored: bool) -> Image.Image:
    """The cut-out turned and scaled, in the middle of white, SIDE x SIDE."""
    shown = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else stamp
    shown = shown.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    shown = shown.crop(shown.getbbox())
    scale = share * SIDE / max(shown.size)
    shown = shown.resize((round(shown.width * scale), round(shown.height * scale)), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE), "white")
    canvas.alpha_composite(shown, ((SIDE - shown.width) // 2, (SIDE - shown.height) // 2))
    return canvas.convert("RGB")


def main() -> None:
    """Write `<out>/<subject>/<view>.png` and the list of subjects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="(default: %(default)s)")
    args = parser.parse_args()
    for name, (path, _) in SUBJECTS.items():
        stamp = Image.open((args.stamps / path).with_suffix(".png")).convert("RGBA")
        (args.out / name).mkdir(parents=True, exist_ok=True)
        for number, (degrees, share, mirrored) in enumerate(VIEWS, start=1):
            view(stamp, degrees, share, mirrored).save(args.out / name / f"{number}.png")
    nouns = {name: noun for name, (_, noun) in SUBJECTS.items()}
    (args.out / "samples.json").write_text(json.dumps(nouns, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
