"""Consolidation by double distillation, with diffusion-classifier scores (DSC).

After a task, teacher 1 is the adapter just trained, teacher 2 that of a random earlier task, drawn anew at each step;
the student starts from teacher 1. All see the same x_t of the current task's images:

L = a_l2 [ |eps_T1(c_n) - eps_S(c_n)|^2 + |eps_T2(c_j) - eps_S(c_j)|^2 ] + a_dc [ H(p_T1, p_S) + H(p_T2, p_S) ]

with a_l2 = 1, a_dc = tau^2, and the recipe's penalties on top.
Ours: the tau^2. The gradient of H with respect to an error is a difference of scores over tau, and scores differ by
differences of errors over tau; tau^2 takes both out (Hinton et al., arXiv 1503.02531, section 2), so that at any
calibrated temperature the scores weigh about as much as the predictions. With a_dc = 1 they drown the predictions.
Source: Jha et al., arXiv 2410.00700, section 3.2; deep model consolidation: Zhang et al., arXiv 1903.07864.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..denoiser import Conditioning
from ..losses.denoising import NoisedBatch, draw_batch
from ..losses.scores import (
    Match,
    backward_through_errors,
    calibrated_on,
    cross_entropy_error_gradient,
    dc_log_scores,
    prompt_subset,
    score_values,
)
from ..settings import TrainSettings
from ..task import StepRecord, TrainedTask, step_rng
from ..training.divergence import check_numbers
from ..training.memory import Halving
from ..training.optimizers import set_training
from ..training.precision import clipped_norm
from ..training.schedule import schedule_factor
from ..training.state import TrainState
from .method import Method

NAME = "dsc"
State = Mapping[str, Tensor]  # of an adapter
CALIBRATION_BATCHES = 4


class DSC(Method):
    """See the module.

    Args:
        settings: `consolidation`, `num_prompts`, `temperature`, `low_memory` take effect, and how it was trained.
        classifier: whether the scores are distilled as well, else the predictions alone (a_dc = 0).
    """

    def __init__(self, settings: TrainSettings, classifier: bool = False) -> None:
        super().__init__(settings)
        self.classifier = classifier

    @property
    def uses(self) -> set[str]:
        """See `Method`."""
        scores = {"num_prompts", "temperature", "base_concept"}
        return {"consolidation", "low_memory"} | (scores if self.classifier else set())

    def prompts_a_pass(self, num_earlier: int) -> int:
        """See `Method`."""
        if self.settings.low_memory or not num_earlier:
            return 1
        return min(self._num_prompts, num_earlier + 2) if self.classifier else 2

    @property
    def _num_prompts(self) -> int:
        """In all, where there are scores: c_n, c_j and c_0 at least."""
        return max(3, self.settings.num_prompts)

    def consolidate(self, task: TrainedTask) -> Iterator[StepRecord]:
        """Train the student, in place of teacher 1; nothing at the first task."""
        if not task.earlier_prompts:
            return
        settings = replace(self.settings, ema_decay=0.0)  # averages are of the training alone
        teacher = task.adapter.state_dict()
        temperature = settings.temperature or (self._calibrate(task) if self.classifier else 1.0)
        total, halving = max(1, round(settings.consolidation * settings.steps)), Halving(settings, task.work)
        student = TrainState(task.adapter, {}, settings, task.scaler)
        task.consolidation.restore(student)
        set_training(student.optimizer, True)
        try:
            while student.step < total:
                values = self._step(task, student, teacher, temperature, halving, total)
                due = student.step % settings.checkpoint_every == 0 or student.step == total - 1
                if due and student.step < total:  # the last step is made again, so what it reports need not be kept
                    task.consolidation.save(student)
                yield StepRecord("consolidate", student.step, total, student.losses[-1], student.penalties[-1], values)
        except BaseException:
            if student.whole and student.step < total:
                task.consolidation.save(student)
            raise
        set_training(student.optimizer, False)
        student.optimizer.zero_grad(set_to_none=True)

    def _step(
        self, task: TrainedTask, student: TrainState, teacher: State, temperature: float, halving: Halving, total: int
    ) -> dict[str, float]:
        """One step of the student; returns what is reported of it."""
        settings, step = self.settings, student.step
        size = settings.batch_size * settings.gradient_accumulation
        batch, prompts, j = self._batch(task, "consolidate", step, size)
        teachers = teacher, task.earlier_adapter(j)
        attempt = partial(self._backward, task, batch, prompts, teachers, temperature)
        errors, values = halving.run(attempt, f"Step {step + 1} of the consolidation")
        penalty = task.penalty()
        if penalty is not None:
            task.scaler.scale(penalty).backward()
        norm = clipped_norm(task.scaler, student.optimizer, student.trained(), settings.gradient_clip)
        loss, held = float(errors[0].mean()), 0.0 if penalty is None else penalty.item()
        check_numbers(loss, held, norm, f"step {step + 1} of {total} of the consolidation")
        factor = schedule_factor(step, total, 0, settings.schedule)
        student.optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        student.whole = False
        task.scaler.step(student.optimizer)
        task.scaler.update()
        student.step += 1
        student.log(loss, held)
        student.whole = True
        return {**values, "adapter_norm": student.norms[-1]}

    def _backward(
        self,
        task: TrainedTask,
        batch: NoisedBatch,
        prompts: list[Conditioning],
        teachers: tuple[State, State],
        temperature: float,
        passes: int,
    ) -> tuple[Tensor, dict[str, float]]:
        """The gradients of both terms of both teachers; the student's errors [K, B] and the terms' values."""
        for parameter in task.adapter.parameters.values():
            parameter.grad = None
        found = [
            self._part(task, part, len(part) / len(batch), prompts, teachers, temperature)
            for part in batch.parts(passes * self.settings.gradient_accumulation)
        ]
        parts, distances, targets = zip(*found, strict=True)
        errors = torch.cat(parts, dim=1)
        values = {f"l2_teacher{i}": float(torch.cat(d).mean()) for i, d in enumerate(zip(*distances, strict=True), 1)}
        scores = dc_log_scores(errors, temperature)
        for i, own in enumerate(zip(*targets, strict=True), start=1):
            target = torch.cat(own, dim=1)
            values[f"kl_teacher{i}"] = float((target.exp() * (target - scores)).sum(0).mean())
        return errors, values | (score_values(errors, temperature) if self.classifier else {})

    def _part(
        self,
        task: TrainedTask,
        batch: NoisedBatch,
        share: float,
        prompts: list[Conditioning],
        teachers: tuple[State, State],
        temperature: float,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same of a share of the images: the errors, the distances from both teachers [B], their log scores."""
        matches: list[Match] = []
        targets: list[Tensor] = []
        for own, teacher in enumerate(teachers):  # c_n is prompt 0 and c_j prompt 1
            with task.adapter.carrying(teacher), torch.no_grad():
                if self.classifier:
                    predictions = _predict(batch, prompts, self.settings.low_memory)
                    targets.append(dc_log_scores(batch.errors_of(predictions), temperature))
                    matches.append(Match(own, predictions[own]))
                else:
                    matches.append(Match(own, batch.predict([prompts[own]])[0]))

        def weights(errors: Tensor) -> Tensor:
            terms = [cross_entropy_error_gradient(errors, target.exp(), temperature) for target in targets]
            return temperature**2 * torch.stack(terms).sum(0) / len(batch)

        def scaled(loss: Tensor) -> Tensor:
            return task.scaler.scale(share * loss)  # type: ignore[no-any-return]

        low_memory, of_errors = self.settings.low_memory, weights if self.classifier else None
        errors, distances = backward_through_errors(batch, prompts, of_errors, low_memory, matches, scaled)
        return errors, distances, targets

    def _batch(
        self, task: TrainedTask, phase: str, step: int, size: int
    ) -> tuple[NoisedBatch, list[Conditioning], int]:
        """A draw, its prompts [c_n, c_j, c_0, ...] (only the first two without scores), and j, 0-based."""
        rng = step_rng(task.seed, phase, step)
        indices = torch.randint(len(task.latents), (size,), generator=rng)
        batch = draw_batch(task.denoiser, task.latents, task.masks, indices, rng)
        j, *others = prompt_subset(len(task.earlier_prompts), self._num_prompts, rng)
        prompts = [task.prompt, task.earlier_prompts[j]]
        if self.classifier:
            prompts += [task.base_prompt, *(task.earlier_prompts[i] for i in others)]
        return batch, prompts, j

    def _calibrate(self, task: TrainedTask) -> float:
        size = self.settings.batch_size
        draws = (self._batch(task, "calibration", step, size) for step in range(CALIBRATION_BATCHES))
        return calibrated_on((batch, prompts) for batch, prompts, _ in draws)


def _predict(batch: NoisedBatch, prompts: list[Conditioning], low_memory: bool) -> Tensor:
    """Predictions [K, B, C, H, W], in one pass or one prompt at a time."""
    return torch.cat([batch.predict([prompt]) for prompt in prompts]) if low_memory else batch.predict(prompts)


METHOD = DSC
