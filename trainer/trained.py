"""A task after its training, as the methods and the evaluation see it."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import overload

import torch
from torch import Tensor

from .adapters.adapter import Adapter
from .denoiser import Conditioning, Denoiser, TokenVectors
from .disk.manifest import TaskRecord
from .disk.sequence import ConceptSequence
from .planning import task_seed
from .prompts import base_prompt
from .task import NOWHERE, Kept, TrainedTask
from .training.precision import NO_SCALER
from .work import ALONE, Work

# A thousand prompts of SDXL would be 600 MB.
MOST_ENCODED = 64


class EncodedPrompts(Sequence[Conditioning]):
    """Prompts that are encoded when they are first asked for, the last `MOST_ENCODED` of them kept.

    Args:
        texts: the prompts.
        encode: one of them, without a graph.
    """

    def __init__(self, texts: Sequence[str], encode: Callable[[str], Conditioning]) -> None:
        self._texts = texts
        self._encoded = lru_cache(MOST_ENCODED)(encode)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Conditioning: ...
    @overload
    def __getitem__(self, index: slice) -> list[Conditioning]: ...

    def __getitem__(self, index: int | slice) -> Conditioning | list[Conditioning]:
        if isinstance(index, slice):
            return [self._encoded(text) for text in self._texts[index]]
        return self._encoded(self._texts[index])


def trained_task(
    denoiser: Denoiser,
    adapter: Adapter,
    tokens: Mapping[str, TokenVectors],
    earlier: ConceptSequence,
    task: TaskRecord,
    latents: Tensor,
    masks: Tensor | None = None,
    penalty: Callable[[], Tensor | None] = lambda: None,
    scaler: torch.amp.GradScaler = NO_SCALER,
    work: Work = ALONE,
    consolidation: Kept = NOWHERE,
) -> TrainedTask:
    """What the methods see of a task after its training.

    Args:
        denoiser: the view that carries the adapter.
        adapter: as the training left it.
        tokens: all up to the task's own.
        earlier: the line before the task.
        task: its record.
        latents: x_0 of its images, [N, C, h, w].
        masks: [N, 1, h, w] in 0..1, or None.
        penalty: what the recipe adds to the loss.
        scaler: of the loss.
        work: who does it.
        consolidation: where one is kept.
    """

    def prompt(text: str) -> Conditioning:
        with torch.no_grad():
            return denoiser.encode_prompt(text, tokens)

    before = earlier.tasks
    return TrainedTask(
        denoiser=denoiser,
        latents=latents,
        masks=masks,
        base_prompt=prompt(base_prompt(task.settings["base_concept"], task.class_noun)),
        prompt=prompt(task.prompt),
        earlier_prompts=EncodedPrompts([record.prompt for record in before], prompt),
        adapter=adapter,
        earlier_adapter=lambda j: adapter.state_of(earlier.adapter_files(before[j])),
        penalty=penalty,
        seed=task_seed(task),
        scaler=scaler,
        work=work,
        consolidation=consolidation,
    )
