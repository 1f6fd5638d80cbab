"""Dropping the worse prompts early, on the embedded base: `python -m benchmarks.pruning`.

Every image of the twelve bundled concepts, none of which the base has seen, is classified among the class nouns of all
of them, with every trial for every prompt and with pruning, on the same draws. Writes results/pruning.json: for each
number of trials how often the prediction is the same, how often each is right, and what pruning costs in passes of the
U-Net and in seconds, as shares of all trials.
"""

import json
import time
from pathlib import Path

import torch

from benchmarks.concepts import concepts_of
from trainer.bases.tiny.base import TinyBase
from trainer.classifier import Classification, classify
from trainer.concept import prepare

RESULT = Path(__file__).with_name("results") / "pruning.json"
TRIALS = (8, 16, 32, 64)


def main() -> None:
    """Classify, compare, write."""
    torch.set_num_threads(1)
    base = TinyBase()
    concepts = [*concepts_of("reported"), *concepts_of("tuning")]
    nouns = list(dict.fromkeys(concept.class_noun for concept in concepts))
    with torch.no_grad():
        latents = torch.cat([base.encode_images(prepare(concept, base.resolution)[0]) for concept in concepts])
        prompts = [base.encode_prompt(f"photo of a {noun}", {}) for noun in nouns]
    counts = [len(concept.images) for concept in concepts]
    truth = torch.tensor([nouns.index(c.class_noun) for c, n in zip(concepts, counts, strict=True) for _ in range(n)])
    found: dict[str, dict[str, float]] = {}
    for trials in TRIALS:
        results: dict[bool, Classification] = {}
        seconds = {}
        for pruned in (False, True):
            start = time.process_time()
            parts = [classify(base, latent[None], prompts, trials, 0, pruned=pruned) for latent in latents]
            seconds[pruned] = time.process_time() - start
            results[pruned] = Classification(
                torch.cat([part.errors for part in parts], 1), torch.cat([part.trials for part in parts], 1), 1.0
            )
        full, short = results[False], results[True]
        found[str(trials)] = {
            "same": float((full.predicted == short.predicted).float().mean()),
            "right_with_all": float((full.predicted == truth).float().mean()),
            "right_with_pruning": float((short.predicted == truth).float().mean()),
            "passes": float(short.trials.sum() / full.trials.sum()),
            "seconds": seconds[True] / seconds[False],
        }
        print(trials, found[str(trials)], flush=True)
    facts = {"base": base.fingerprint[:12], "images": len(latents), "prompts": len(nouns), "trials": found}
    RESULT.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
