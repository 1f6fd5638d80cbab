"""What a step of the consolidation costs, in plain training steps: `python -m benchmarks.dsc_cost`.

Counting passes of the U-Net, a forward as much as a backward, a plain step has 2, a step of DSC 6 with the predictions
alone and 12 with the scores of 3 prompts: 3 and 6 times as much. All three are timed in turn, in one process.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from trainer.bases.tiny.base import TinyBase
from trainer.cli.demo import TINY_SETTINGS, load_sample
from trainer.disk.sequence import ConceptSequence
from trainer.evaluation.fisher_spectrum import restored_task
from trainer.losses.denoising import draw_batch
from trainer.methods.dsc import DSC
from trainer.task import TrainedTask, step_rng
from trainer.teach import teach

RESULT = Path(__file__).with_name("results") / "dsc_cost.json"
ROUNDS = 40


def plain_step(task: TrainedTask, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Noise, forward, backward, update."""
    rng = step_rng(task.seed, "train", step)
    indices = torch.randint(len(task.latents), (TINY_SETTINGS.batch_size,), generator=rng)
    optimizer.zero_grad(set_to_none=True)
    draw_batch(task.denoiser, task.latents, None, indices, rng).error(task.prompt).mean().backward()
    torch.nn.utils.clip_grad_norm_(task.adapter.parameters.values(), 1.0)
    optimizer.step()


def consolidation(task: TrainedTask, classifier: bool) -> Callable[[], object]:
    """One step of DSC a call."""
    # As many steps as are timed; three prompts: c_0, c_j and c_n.
    settings = replace(TINY_SETTINGS, steps=ROUNDS + 1, consolidation=1.0, num_prompts=3, temperature=0.01)
    steps: Iterator[object] = DSC(settings, classifier=classifier).consolidate(task)
    return lambda: next(steps)


def main() -> None:
    """Teach two concepts in a few steps, then time."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        line = ConceptSequence.create(Path(folder), TinyBase().fingerprint)
        for name in ("fox", "sunflower"):
            few = replace(TINY_SETTINGS, recipe="lora", steps=5)
            line = teach(TinyBase(), load_sample(name), few, line)
        tasks = [restored_task(TinyBase(), line) for _ in range(3)]
        optimizer = torch.optim.AdamW(tasks[0].adapter.parameters.values(), lr=1e-3)
        count = iter(range(ROUNDS + 1))
        kinds: dict[str, Callable[[], object]] = {
            "plain": lambda: plain_step(tasks[0], optimizer, next(count)),
            "dsc_l2": consolidation(tasks[1], classifier=False),
            "dsc_dc": consolidation(tasks[2], classifier=True),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(ROUNDS + 1):
            for kind, step in kinds.items():
                start = time.perf_counter()
                step()
                seconds[kind].append(time.perf_counter() - start)
    median = {kind: statistics.median(values[1:]) for kind, values in seconds.items()}
    result = {
        "base": "embedded",
        "batch_size": TINY_SETTINGS.batch_size,
        "plain_step_seconds": median["plain"],
        "dsc_l2_over_step": median["dsc_l2"] / median["plain"],
        "dsc_dc_over_step": median["dsc_dc"] / median["plain"],
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
