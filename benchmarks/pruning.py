"""Dropping the worse prompts early, on the embedded base: `python -m benchmarks.pruning --node-modules DIR`.

Drawings that the base was trained on, as in `scripts.tiny_base.quality`, are classified among their own caption, those
of the same thing in other styles and those of other things, eight in all, with every trial for every prompt and with
pruning, on the same draws. Writes results/pruning.json: for each number of trials how often the prediction is the same,
how often each is right, and what pruning costs in passes of the U-Net and in seconds, as shares of all trials.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from scripts.tiny_base.emoji import STYLES, EmojiGrid
from scripts.tiny_base.quality import captions, real_images
from trainer.bases.tiny.base import TinyBase
from trainer.classifier import Classification, classify

RESULT = Path(__file__).with_name("results") / "pruning.json"
TRIALS, IMAGES, CANDIDATES = (8, 16, 32, 64), 64, 8


def candidates(pairs: list[tuple[str, str]], place: int) -> list[str]:
    """The caption at a place, then the others."""
    style, name = pairs[place]
    own = [f"{style} {name}", *(f"{other} {name}" for other in STYLES if other != style)]
    steps = range(1, CANDIDATES - len(own) + 1)
    others = [pairs[(place + step * len(pairs) // CANDIDATES) % len(pairs)] for step in steps]
    return [*own, *map(" ".join, others)]


def compared(base: TinyBase, latents: torch.Tensor, pairs: list[tuple[str, str]], trials: int) -> dict[str, float]:
    """All trials against pruning; `latents` are of the (style, name) at the same place in `pairs`."""
    seconds, results = {}, {}
    places = [index * len(pairs) // IMAGES for index in range(IMAGES)]
    with torch.no_grad():
        prompts = [[base.encode_prompt(text, {}) for text in candidates(pairs, place)] for place in places]
    for pruned in (False, True):
        start = time.process_time()
        found: list[Classification] = []
        for index, place in enumerate(places):
            found.append(classify(base, latents[place, None], prompts[index], trials, index, pruned=pruned))
        seconds[pruned] = time.process_time() - start
        results[pruned] = (
            torch.tensor([int(each.predicted) for each in found]),
            sum(int(each.trials.sum()) for each in found),
        )
    (full, all_passes), (short, passes) = results[False], results[True]
    return {
        "same": float((full == short).float().mean()),
        "right_with_all": float((full == 0).float().mean()),
        "right_with_pruning": float((short == 0).float().mean()),
        "passes": passes / all_passes,
        "seconds": seconds[True] / seconds[False],
    }


def main() -> None:
    """Classify, compare, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pruning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--node-modules", type=Path, required=True, help="where npm put the emoji packages")
    grid = EmojiGrid(parser.parse_args().node_modules)
    torch.set_num_threads(1)
    base, pairs = TinyBase(), captions()
    with torch.no_grad():
        latents = base.encode_images(real_images(grid, pairs, base.resolution))
    found = {}
    for trials in TRIALS:
        found[str(trials)] = compared(base, latents, pairs, trials)
        print(trials, found[str(trials)], flush=True)
    facts = {"base": base.fingerprint[:12], "images": IMAGES, "prompts": CANDIDATES, "trials": found}
    RESULT.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
