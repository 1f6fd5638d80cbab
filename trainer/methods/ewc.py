"""Online elastic weight consolidation, with a Fisher that may know the classes (EWC-DC).

lambda * sum_i F_i (theta_i - theta*_i)^2 with one running F and one anchor theta*, constant in the number of tasks.
Source: Kirkpatrick et al., arXiv 1612.00796; Schwarz et al., arXiv 1805.06370 (online);
Jha et al., arXiv 2410.00700, section 3.1 (F from L_den + CE of the diffusion classifier).
Ours: each task's F is scaled to trace 1 before it is added, so that lambda means the same with and without DC, whose
gradient carries 1 / tau, and at every rank.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..adapters.adapter import Adapter
from ..denoiser import Conditioning
from ..errors import ContinualLoraError
from ..losses.denoising import NoisedBatch, draw_batch
from ..losses.fisher import normalized, per_sample_gradients, sum_of_squares
from ..losses.quadratic import quadratic_penalty
from ..losses.scores import (
    SCORE_VALUES,
    backward_through_errors,
    calibrated_on,
    cross_entropy_error_gradient,
    prompt_subset,
    score_values,
)
from ..settings import TrainSettings
from ..task import StepRecord, TrainedTask, step_rng
from ..training.memory import Halving
from .method import Method

NAME = "ewc"
CALIBRATION_BATCHES = 4


class EWC(Method):
    """See the module.

    Args:
        settings: those in `uses` take effect, and `batch_size`.
        classifier: whether the Fisher's objective is L_den + CE(DC scores, c_n), else L_den alone.
    """

    def __init__(self, settings: TrainSettings, classifier: bool = False) -> None:
        super().__init__(settings)
        self.classifier = classifier
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}

    @property
    def uses(self) -> set[str]:
        """See `Method`."""
        always = {"penalty_weight", "fisher_draws", "fisher_decay", "fisher_space"}
        return always | ({"num_prompts", "temperature", "base_concept", "low_memory"} if self.classifier else set())

    def prompts_a_pass(self, num_earlier: int) -> int:
        """See `Method`."""
        one_at_a_time = self.settings.low_memory or not self.classifier
        return 1 if one_at_a_time else min(self.settings.num_prompts, num_earlier + 2)

    def _theta(self, adapter: Adapter) -> Mapping[str, Tensor]:
        """What the Fisher weighs, by name."""
        return adapter.deltas() if self.settings.fisher_space == "update" else adapter.parameters

    def _layers(self, adapter: Adapter) -> Mapping[str, nn.Module]:
        """The layers whose per-sample gradients are those of `_theta`."""
        if self.settings.fisher_space == "update":
            return {name: adapter.unet.get_submodule(name) for name in adapter.deltas()}
        return adapter.layers

    def penalty(self, adapter: Adapter) -> Tensor | None:
        """Lambda * sum F (theta - theta*)^2; None at the first task."""
        if not self.anchor:
            return None
        return self.settings.penalty_weight * quadratic_penalty(self._theta(adapter), self.anchor, self.fisher)

    def end_task(self, task: TrainedTask) -> Iterator[StepRecord]:
        """F <- gamma F + F_n / trace(F_n), theta* <- theta."""
        theta = {name: value.detach().clone() for name, value in self._theta(task.adapter).items()}
        total = {name: torch.zeros_like(value) for name, value in theta.items()}
        temperature, draws = self._temperature(task), self.settings.fisher_draws
        num_batches, loss = math.ceil(draws / self.settings.batch_size), 0.0
        device = task.denoiser.device
        reported = {name: torch.zeros((), device=device) for name in SCORE_VALUES if self.classifier}
        for step, errors, gradients in self._draws(task, draws, temperature):
            for name, value in sum_of_squares(gradients).items():
                total[name] += value / draws
            values = score_values(errors, temperature) if self.classifier else {}
            for name, number in values.items():
                reported[name] += number * errors.shape[1] / draws
            loss = float(errors[0].mean())
            yield StepRecord("fisher", step + 1, num_batches, loss, values=values)
        fresh, trace = normalized(task.work.total(total))
        if not math.isfinite(trace):
            raise ContinualLoraError(
                "The Fisher information should be made of numbers.",
                f"Their sum became {trace}.",
                "Lower the learning rates, or choose a recipe without EWC; the training up to here is kept.",
            )
        gamma = self.settings.fisher_decay
        self.fisher = {n: gamma * self.fisher[n] + f if n in self.fisher else f for n, f in fresh.items()}
        self.anchor = theta
        means = {name: float(value) for name, value in task.work.total(reported).items()}
        values = {"fisher_trace": trace, "temperature": temperature, **means}
        yield StepRecord("fisher", num_batches, num_batches, loss, values=values)

    def gradients(self, task: TrainedTask, draws: int) -> Iterator[Mapping[str, Tensor]]:
        """Per-sample gradients [B, ...] of the Fisher's objective by name, batch after batch, on the Fisher's draws."""
        for _, _, gradients in self._draws(task, draws, self._temperature(task)):
            yield gradients

    def _draws(
        self, task: TrainedTask, draws: int, temperature: float
    ) -> Iterator[tuple[int, Tensor, Mapping[str, Tensor]]]:
        """The number of a batch, its errors [K, B] and per-sample gradients, batch after batch."""

        def weights(errors: Tensor) -> Tensor:
            # The true class, c_n, is the first prompt: its error is L_den itself.
            truth = torch.zeros_like(errors)
            truth[0] = 1.0
            return truth + cross_entropy_error_gradient(errors, truth, temperature) if self.classifier else truth

        # The training, which has no scores, found the scale; their gradient carries 1 / tau.
        scale = task.scaler.get_scale()
        scale = max(1.0, scale / (1 + 1 / temperature)) if self.classifier else scale
        size, halving = self.settings.batch_size, Halving(self.settings, task.work)

        def scaled(loss: Tensor) -> Tensor:
            return scale * loss

        for step in task.work.share(math.ceil(draws / size)):
            count = min(size, draws - step * size)
            batch, prompts = self._batch(task, "fisher", step, count)
            attempt = partial(self._backward, task.adapter, batch, prompts, weights, scaled)
            while True:
                errors, gradients = halving.run(attempt, f"Draw {step + 1} of the Fisher")
                if scale <= 1 or all(bool(gradient.isfinite().all()) for gradient in gradients.values()):
                    break
                scale = max(1.0, scale / 2)  # the draw overflowed in fp16, and is made again
            if scale > 1:
                for gradient in gradients.values():
                    gradient.div_(scale)
            yield step, errors, gradients

    def _backward(
        self,
        adapter: Adapter,
        batch: NoisedBatch,
        prompts: list[Conditioning],
        weights: Callable[[Tensor], Tensor],
        scaled: Callable[[Tensor], Tensor],
        passes: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The errors [K, B] and the per-sample gradients by name; none is left on the adapter."""
        found = []
        try:
            for part in batch.parts(min(passes, len(batch))):
                with per_sample_gradients(self._layers(adapter), len(part)) as gradients:
                    errors, _ = backward_through_errors(part, prompts, weights, self.settings.low_memory, scaled=scaled)
                found.append((errors, gradients))
        finally:
            for parameter in adapter.parameters.values():
                parameter.grad = None
        if len(found) == 1:
            return found[0]  # without a copy: of full keys and values they are large
        names = found[0][1]
        return torch.cat([errors for errors, _ in found], dim=1), {
            name: torch.cat([gradients[name] for _, gradients in found]) for name in names
        }

    def _temperature(self, task: TrainedTask) -> float:
        return self.settings.temperature or (self._calibrate(task) if self.classifier else 1.0)

    def _batch(self, task: TrainedTask, phase: str, step: int, count: int) -> tuple[NoisedBatch, list[Conditioning]]:
        rng = step_rng(task.seed, phase, step)
        # Images in turn, so that every epoch sees each of them once.
        indices = (step * self.settings.batch_size + torch.arange(count)) % len(task.latents)
        batch = draw_batch(task.denoiser, task.latents, task.masks, indices, rng)
        if not self.classifier:
            return batch, [task.prompt]
        chosen = prompt_subset(len(task.earlier_prompts), self.settings.num_prompts, rng)
        return batch, [task.prompt, task.base_prompt, *(task.earlier_prompts[j] for j in chosen)]

    def _calibrate(self, task: TrainedTask) -> float:
        """Tau from the spread of the errors over the prompts on a few batches of their own."""
        count = min(self.settings.batch_size, len(task.latents))
        return calibrated_on(self._batch(task, "calibration", step, count) for step in range(CALIBRATION_BATCHES))

    def state_dict(self) -> dict[str, Tensor]:
        """`fisher.<name>` and `anchor.<name>`, on the CPU."""
        parts = (("fisher", self.fisher), ("anchor", self.anchor))
        return {f"{part}.{name}": value.cpu() for part, tensors in parts for name, value in tensors.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over F and theta*."""
        self.fisher, self.anchor = (
            {name.removeprefix(part): value for name, value in state.items() if name.startswith(part)}
            for part in ("fisher.", "anchor.")
        )

    def begin_task(self, adapter: Adapter) -> None:
        """Move F to where theta lives, and theta* to theta: without EWC it moves and F stays.

        Raises:
            ContinualLoraError: the carried Fisher is of another space, or does not fit.
        """
        theta = self._theta(adapter)
        if self.anchor and self.anchor.keys() != theta.keys():
            raise ContinualLoraError(
                f'The carried Fisher should be of the space "{self.settings.fisher_space}" that "fisher_space" names.',
                f"It weighs `{next(iter(self.anchor))}`, which is of the other one.",
                'Set "fisher_space" to what the sequence was trained with, or start a new sequence.',
            )
        for tensors in (self.fisher, self.anchor):
            if self.anchor and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in theta.items()}:
                raise ContinualLoraError(
                    "The carried Fisher and anchor should have the names and shapes of what is trained.",
                    "They have others: `methods.safetensors` of the last concept is damaged or of another model.",
                    "Put that file back from a copy, or start a new sequence.",
                )
        self.fisher = {name: value.to(theta[name].device) for name, value in self.fisher.items()}
        self.anchor = {name: theta[name].detach().clone() for name in self.anchor}


METHOD = EWC
