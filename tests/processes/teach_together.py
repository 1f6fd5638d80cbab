"""Teach two concepts, draw and classify, as one of the processes of a launcher: `teach_together.py FOLDER`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from trainer.apply import attach
from trainer.bases.tiny.base import TinyBase
from trainer.classifier import classify
from trainer.cli.demo import load_sample
from trainer.concept import prepare
from trainer.disk.sequence import ConceptSequence
from trainer.evaluation.pictures import all_cells, draw_missing, own_artist
from trainer.losses.denoising import draw_batch
from trainer.processes import Processes, launched_work
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
    sys.stdout.write(f"{work.rank}/{work.count}\n" if isinstance(work, Processes) else "0/1\n")
    line = ConceptSequence.create(folder / "sequence", TinyBase().fingerprint)
    for name in ("fox", "sunflower"):
        line = teach(TinyBase(), load_sample(name), SETTINGS, line, work=work)
    draw_missing(line, own_artist(TinyBase, 2, 0, 2, 2.0), all_cells(2), work=work)
    base = work.shared(TinyBase())
    adapter, tokens = attach(base, line)
    with torch.no_grad():
        latents = base.encode_images(prepare(load_sample("fox"), base.resolution)[0][:3])
        prompts = [base.encode_prompt(task.prompt, tokens) for task in line.tasks]
        errors = classify(base, latents, prompts, 4, 0, pruned=False).errors
    # AdamW does not see how large a gradient is, so it is written down as well.
    work.together(adapter.parameters.values())
    batch = draw_batch(base, latents, None, torch.arange(3), torch.Generator().manual_seed(0))
    for share in (0.25, 0.75):  # two passes, of which the gradients are added up
        penalty = torch.stack([value.square().sum() for value in adapter.parameters.values()]).sum()
        (share * (batch.error(prompts[1]).mean() + 1e-3 * penalty)).backward()
    gradients = {name: value.grad for name, value in adapter.parameters.items()}
    if work.first:
        save_file(gradients, folder / "gradients.safetensors")
        (folder / "errors.json").write_text(json.dumps(errors.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
