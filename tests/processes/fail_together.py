"""Train as one of the processes of a launcher; the second one fails at its third step: `fail_together.py FOLDER`."""

import sys
from pathlib import Path

import torch

from trainer.bases.tiny.base import TinyBase
from trainer.cli.demo import load_sample
from trainer.disk.sequence import ConceptSequence
from trainer.processes import launched_work
from trainer.settings import TrainSettings
from trainer.task import StepRecord
from trainer.teach import teach


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    work = launched_work()

    def on_step(record: StepRecord) -> None:
        if not work.first and record.step == 3:
            raise OSError("the second one's disk broke")

    line = ConceptSequence.create(folder / "sequence", TinyBase().fingerprint)
    settings = TrainSettings(recipe="lora", steps=1000, rank=2, batch_size=2, checkpoint_every=1)
    teach(TinyBase(), load_sample("fox"), settings, line, on_step, work=work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
