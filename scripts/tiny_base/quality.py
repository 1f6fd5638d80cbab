"""Measure the embedded base: is a generated picture nearest to the real drawing of what its caption says?

200 captions "style name" are generated: 200 distinct seen concepts, spread evenly over the list, in exactly one style
each, the styles taking turns. The candidates are the real drawings of the same 200 captions, so each of them shows
another concept and chance is 1 in 200. Nearest is by cosine in the features of EfficientNet-Lite0, and for comparison
by distance between raw pixels. As a scale for the numbers, the real drawings of the same concepts in the next style are
put through the same test. The same weights, arguments and torch build give the same numbers.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scripts.tiny_base.emoji import STYLES, EmojiGrid, concept_names
from trainer.bases.tiny.base import TinyBase
from trainer.denoiser import Conditioning
from trainer.images import to_pil
from trainer.metrics.features.efficientnet import EfficientNetLite0
from trainer.plots import image_grid
from trainer.sampling import sample

NUM_CAPTIONS, NUM_SHOWN, COLUMNS = 200, 64, 8
BATCH = 50


def captions() -> list[tuple[str, str]]:
    """The 200 (style, name), each name once."""
    names = [name for _, name in concept_names("seen")]
    chosen = [names[index * len(names) // NUM_CAPTIONS] for index in range(NUM_CAPTIONS)]
    return [(STYLES[index % len(STYLES)], name) for index, name in enumerate(chosen)]


def real_images(grid: EmojiGrid, pairs: list[tuple[str, str]], side: int) -> Tensor:
    """The drawings of the captions, [B, 3, side, side] in 0..1, resized as for the training."""
    drawings = [grid.render(style, name).resize((side, side), Image.Resampling.LANCZOS) for style, name in pairs]
    return torch.from_numpy(np.stack([np.asarray(drawing) for drawing in drawings])).permute(0, 3, 1, 2).float() / 255


def generate(base: TinyBase, prompts: list[str], *, steps: int, guidance: float, seed: int) -> Tensor:
    """One picture for each prompt, [B, 3, 64, 64] in 0..1; the noise of each depends only on seed and place."""
    side = base.resolution // 8
    noise = torch.randn(len(prompts), 8, side, side, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        conditionings = [base.encode_prompt(prompt, {}) for prompt in prompts]
        empty = base.encode_prompt("", {})
        images = []
        for start in range(0, len(prompts), BATCH):
            part = Conditioning.cat(conditionings[start : start + BATCH])
            latents = sample(base, part, empty, noise[start : start + BATCH], steps=steps, guidance=guidance)
            images.append(base.decode_latents(latents))
    return torch.cat(images)


def top_k(distances: Tensor, k: int) -> float:
    """How often the candidate of the same place, distances[i, i], is among the k nearest of row i, in 0..1.

    A tie, and a distance that is not a number, count as a miss.
    """
    as_near = (~(distances > distances.diagonal()[:, None])).sum(1)
    return int((as_near <= k).sum()) / len(distances)


def measure(generated: Tensor, real: Tensor, other_style: Tensor) -> dict[str, float]:
    """Share of images whose nearest real image shows the right concept, [B, 3, H, W] each."""
    encoder = EfficientNetLite0()
    candidates = encoder(real).T
    by_features = 1 - encoder(generated) @ candidates
    by_pixels = torch.cdist(generated.flatten(1), real.flatten(1))
    return {
        "top1": top_k(by_features, 1),
        "top5": top_k(by_features, 5),
        "top1_raw_pixels": top_k(by_pixels, 1),
        "top1_chance": 1 / len(real),
        "top1_of_real_other_style": top_k(1 - encoder(other_style) @ candidates, 1),
    }


def contact_sheet(images: Tensor, titles: list[str]) -> Image.Image:
    """Samples spread over all of them, caption under each."""
    shown = [index * len(images) // NUM_SHOWN for index in range(NUM_SHOWN)]
    rows = [shown[start : start + COLUMNS] for start in range(0, NUM_SHOWN, COLUMNS)]
    pictures = [[to_pil(images[index]) for index in row] for row in rows]
    return image_grid(pictures, captions=[[titles[index] for index in row] for row in rows])


def main() -> None:
    """Parse the arguments, generate, measure, write both files and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("trainer/bases/tiny/weights"), help="exported folder")
    parser.add_argument("--node-modules", type=Path, required=True, help="where npm put the emoji packages")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="tiny_base.json and the contact sheet go here")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base, pairs = TinyBase(args.weights), captions()
    titles = [f"{style} {name}" for style, name in pairs]
    generated = generate(base, titles, steps=args.steps, guidance=args.guidance, seed=args.seed)
    grid, next_style = EmojiGrid(args.node_modules), dict(zip(STYLES, STYLES[1:] + STYLES[:1], strict=True))
    real = real_images(grid, pairs, base.resolution)
    other = real_images(grid, [(next_style[style], name) for style, name in pairs], base.resolution)
    scores = measure(generated, real, other)
    settings = {"captions": len(pairs), "steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    facts = settings | {"encoder": EfficientNetLite0.name, "base_fingerprint": base.fingerprint} | scores
    args.docs.mkdir(parents=True, exist_ok=True)
    contact_sheet(generated, titles).save(args.docs / "tiny_base_samples.png", optimize=True)
    (args.docs / "tiny_base.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
