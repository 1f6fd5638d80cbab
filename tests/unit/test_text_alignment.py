"""T2I's encoder: the regression by an independent solver, and the shipped map on drawings it never saw."""

import json

import torch

from benchmarks.text_alignment import AlignedText, ridge
from trainer.cli.demo import SAMPLES, load_sample
from trainer.concept import prepare
from trainer.metrics.features.efficientnet import EfficientNetLite0


def test_ridge_is_least_squares_on_the_augmented_system():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 5, generator=rng).double(), torch.randn(9, 3, generator=rng).double()
    weight, bias = ridge(x, y, 0.7)
    # Rows sqrt(0.7) e_i with target 0 are the penalty, and a column of ones, not penalized, is the bias.
    ones = torch.cat([torch.ones(9, 1), torch.zeros(5, 1)]).double()
    system = torch.cat([torch.cat([x, 0.7**0.5 * torch.eye(5, dtype=torch.float64)]), ones], dim=1)
    solved = torch.linalg.lstsq(system, torch.cat([y, torch.zeros(5, 3).double()])).solution
    torch.testing.assert_close(weight, solved[:5])
    torch.testing.assert_close(bias, solved[5])


def test_unseen_drawings_are_nearer_to_their_own_noun():
    nouns = json.loads((SAMPLES / "samples.json").read_text(encoding="utf-8"))
    aligned, encoder = AlignedText(), EfficientNetLite0()
    distinct = sorted(set(nouns.values()))
    texts = torch.stack([aligned.encode_text(f"photo of a {noun}") for noun in distinct])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(len(distinct)))
    found = []
    for name, noun in nouns.items():
        carried = aligned.carry(encoder(prepare(load_sample(name), 64)[0]))
        found += ((carried @ texts.T).argmax(1) == distinct.index(noun)).tolist()
    assert sum(found) / len(found) > 3 / len(distinct)  # chance is 1 / len(distinct)
