"""Fit the map of `benchmarks/text_alignment.py`, and say how well it names drawings it never saw.

The strength of the ridge is chosen on folds of the base's own concepts; the held-out ones are only reported on.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.text_alignment import MAP, MiniLM, ridge
from scripts.tiny_base.emoji import STYLES, EmojiGrid, concept_names
from scripts.tiny_base.quality import real_images
from trainer.bases.tiny.base import TinyBase
from trainer.metrics.features.efficientnet import EfficientNetLite0

STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS = 6


@dataclass(frozen=True)
class Drawings:
    """One split of the concepts.

    Attributes:
        listed: (class noun, name) of each concept.
        features: EfficientNet's, [concepts, styles, 1280].
    """

    listed: list[tuple[str, str]]
    features: Tensor

    def only(self, chosen: list[int]) -> "Drawings":
        """Some of the concepts."""
        return Drawings([self.listed[i] for i in chosen], self.features[chosen])


def drawings_of(grid: EmojiGrid, split: str, encoder: EfficientNetLite0) -> Drawings:
    """Every concept of the split in every style, at the base's own size."""
    listed = concept_names(split)
    drawn = real_images(grid, [(style, name) for _, name in listed for style in STYLES], TinyBase.resolution)
    return Drawings(listed, encoder(drawn).unflatten(0, (len(listed), len(STYLES))))


def targets(texts: dict[str, Tensor], listed: list[tuple[str, str]]) -> Tensor:
    """Halfway between noun and name, for each concept in every style, [concepts * styles, 384]."""
    middle = torch.stack([texts[noun] + texts[name] for noun, name in listed])
    return F.normalize(middle, dim=1).repeat_interleave(len(STYLES), 0)


def noun_cosines(drawings: Drawings, fit: tuple[Tensor, Tensor], texts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cosines of every drawing with all class nouns, [drawings, nouns], and the index of each one's own, [drawings]."""
    nouns = sorted({noun for noun, _ in concept_names("seen")})
    carried = F.normalize(drawings.features.flatten(0, 1).double() @ fit[0] + fit[1], dim=1)
    own = torch.tensor([nouns.index(noun) for noun, _ in drawings.listed]).repeat_interleave(len(STYLES))
    return carried @ torch.stack([texts[noun] for noun in nouns]).double().T, own


def noun_accuracy(cosines: Tensor, own: Tensor) -> float:
    """How often the nearest of all class nouns is the drawing's own."""
    return float((cosines.argmax(1) == own).double().mean())


def cross_validated(drawings: Drawings, texts: dict[str, Tensor], strength: float) -> float:
    """Noun accuracy on concepts left out in turn."""
    order = torch.randperm(len(drawings.listed), generator=torch.Generator().manual_seed(0))
    accuracies = []
    for fold in range(FOLDS):
        out = set(order[fold::FOLDS].tolist())
        kept, left = (drawings.only([i for i in range(len(order)) if (i in out) is side]) for side in (False, True))
        fit = ridge(kept.features.flatten(0, 1), targets(texts, kept.listed), strength)
        accuracies.append(noun_accuracy(*noun_cosines(left, fit, texts)))
    return sum(accuracies) / FOLDS


def main() -> None:
    """Choose, fit, report, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-modules", type=Path, required=True, help="where npm put the emoji packages")
    grid, encoder = EmojiGrid(parser.parse_args().node_modules), EfficientNetLite0()
    seen, held_out = (drawings_of(grid, split, encoder) for split in ("seen", "held_out"))
    words = sorted({word for pair in (*seen.listed, *held_out.listed) for word in pair})
    texts = dict(zip(words, MiniLM()([f"photo of a {word}" for word in words]), strict=True))
    tried = {strength: cross_validated(seen, texts, strength) for strength in STRENGTHS}
    strength = max(tried, key=lambda each: tried[each])
    fit = ridge(seen.features.flatten(0, 1), targets(texts, seen.listed), strength)
    cosines, own = noun_cosines(held_out, fit, texts)
    of_own = cosines.gather(1, own[:, None])
    quality = {
        "ridge": strength,
        "noun_accuracy_cross_validated": tried,
        "noun_accuracy_held_out": noun_accuracy(cosines, own),
        "chance": 1 / cosines.shape[1],
        "cosine_own_noun_held_out": float(of_own.mean()),
        "cosine_other_nouns_held_out": float((cosines.sum() - of_own.sum()) / (cosines.numel() - len(own))),
    }
    save_file({"weight": fit[0].half(), "bias": fit[1].half()}, MAP)
    MAP.with_suffix(".json").write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(quality, indent=2))


if __name__ == "__main__":
    main()
