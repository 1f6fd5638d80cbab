"""Teach two concepts and classify, as one of the processes of a launcher: `teach_together.py FOLDER`."""

import json
import sys
from pathlib import Path

import torch

from trainer.apply import apply_sequence
from trainer.bases.tiny.base import TinyBase
from trainer.classifier import classify
from trainer.cli.demo import load_sample
from trainer.concept import prepare
from trainer.disk.sequence import ConceptSequence
from trainer.processes import launched_work
from trainer.settings import TrainSettings
from trainer.teach import teach

SETTINGS = TrainSettings(
    recipe="lora_dsc_ewc_dc",
    steps=4,
    rank=2,
    batch_size=4,
    learning_rate=4e-3,
    fisher_draws=10,
    consolidation=0.5,
    prior_images=2,
    validation_every=2,
)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    work = launched_work()
    line = ConceptSequence.create(folder / "sequence", TinyBase().fingerprint)
    for name in ("fox", "sunflower"):
        line = teach(TinyBase(), load_sample(name), SETTINGS, line, work=work)
    base = work.shared(TinyBase())
    tokens = apply_sequence(base, line)
    with torch.no_grad():
        latents = base.encode_images(prepare(load_sample("fox"), base.resolution)[0][:3])
        prompts = [base.encode_prompt(task.prompt, tokens) for task in line.tasks]
        errors = classify(base, latents, prompts, 4, 0, pruned=False).errors
    if work.first:
        (folder / "errors.json").write_text(json.dumps(errors.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
