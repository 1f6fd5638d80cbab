"""Teach one concept: check, find what is already there, train, commit; cancel at any step without loss."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from .adapters import ADAPTERS
from .adapters.adapter import Adapter
from .adapters.factors import Lora
from .apply import tokens_on
from .augment import Pool, training_pool
from .checkpointing import checkpoint_blocks
from .concept import Concept, prepare
from .denoiser import Conditioning, Denoiser, TokenVectors, encode_one_by_one
from .files import write_tensors
from .loop import TrainState, total_penalty, train_concept
from .metadata import lora_metadata
from .planning import check_fits, largest_pass, task_record, task_seed
from .prior import Prior, draw_prior
from .prompts import base_prompt
from .recipes import adapter_name, build_methods
from .sequence import METHODS_STEM, ConceptSequence, TaskRecord
from .settings import TrainSettings
from .task import StepRecord, TrainedTask, step_rng


def teach(
    denoiser: Denoiser,
    concept: Concept,
    settings: TrainSettings,
    sequence: ConceptSequence,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    start: Lora | None = None,
) -> ConceptSequence:
    """Add one concept to a sequence.

    Args:
        denoiser: a fresh view of the base; it carries the new adapter afterwards.
        concept: what to teach.
        settings: how.
        sequence: the line to go on from.
        on_step: told after every step of every phase; what it raises stops the training, which can be resumed.
        start: a LoRA of another training that the first concept starts from.

    Returns:
        The line with the concept as its newest task; at once, without training, if it is on disk already.
    """
    check_fits(sequence, concept, settings, denoiser, start)
    task = task_record(sequence, concept, settings, start)
    if done := sequence.find(task.key):
        return done
    training = _Training(denoiser, concept, settings, sequence, task, on_step, start)
    partial = sequence.partial_path(task.key)
    if partial.exists():
        training.state.load_state_dict(load_file(partial))
    try:
        return training.commit(training.run())
    except BaseException:
        if training.state.whole:  # else the last checkpoint stays what the training goes on from
            write_tensors(partial, training.state.state_dict())
        raise


def trained_task(
    denoiser: Denoiser,
    adapter: Adapter,
    tokens: Mapping[str, TokenVectors],
    earlier: ConceptSequence,
    task: TaskRecord,
    latents: Tensor,
    masks: Tensor | None = None,
    penalty: Callable[[], Tensor | None] = lambda: None,
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
        earlier_prompts=[prompt(record.prompt) for record in before],
        adapter=adapter,
        earlier_adapter=lambda j: adapter.state_of(earlier.adapter_files(before[j])),
        penalty=penalty,
        seed=task_seed(task),
    )


class _Training:
    """One task in the making: the adapter on its view, the token, the methods with what they carried here."""

    def __init__(
        self,
        denoiser: Denoiser,
        concept: Concept,
        settings: TrainSettings,
        sequence: ConceptSequence,
        task: TaskRecord,
        on_step: Callable[[StepRecord], None],
        start: Lora | None = None,
    ) -> None:
        self.denoiser, self.concept, self.settings = denoiser, concept, settings
        self.sequence, self.task, self.on_step = sequence, task, on_step
        self.seed = task_seed(task)
        resolution = settings.resolution or denoiser.resolution
        rng = step_rng(self.seed, "rescale", 0)
        pool = training_pool(concept, resolution, settings.flip, settings.rescale, rng)
        self.prompts, self.num_plain = pool.prompts, pool.num_plain
        self.latents, self.masks = _encode_pool(denoiser, pool)
        samples = largest_pass(settings, len(sequence.tasks))
        denoiser.make_room((samples, *self.latents.shape[1:]), settings.gradient_checkpointing)
        if settings.gradient_checkpointing:
            checkpoint_blocks(denoiser.unet)
        rng = step_rng(self.seed, "initialize", 0)
        kind = ADAPTERS[adapter_name(settings.recipe, settings.adapter)]
        adapter = kind(denoiser.unet, settings.rank, settings.effective_alpha, rng)
        self.prior = self._draw_prior()  # before the adapter goes on from the earlier tasks: it adds nothing yet
        self.methods = build_methods(settings)
        # Also what this recipe's methods have no use for: a later task may take it up again.
        self.carried = sequence.method_state() if sequence.head else {}
        if sequence.head:
            adapter.go_on_from(sequence.adapter_files(sequence.tasks[-1]))
            for name, method in self.methods.items():
                method.load_state_dict(
                    {k.removeprefix(f"{name}."): v for k, v in self.carried.items() if k.startswith(f"{name}.")}
                )
        elif start is not None:
            adapter.start_from(start)
        self.state = TrainState(adapter, denoiser.word_vectors(concept.class_noun), settings)
        self.earlier_tokens = tokens_on(denoiser.device, sequence)

    def run(self) -> dict[str, float]:
        """All phases of the task; returns the last value of every figure that was reported."""
        state, methods, settings = self.state, self.methods.values(), self.settings
        partial = self.sequence.partial_path(self.task.key)
        for method in methods:
            method.begin_task(state.adapter)
        steps = train_concept(
            self.denoiser,
            self.latents,
            self.masks,
            self._prompt_encoder(),
            state,
            methods,
            settings,
            self.seed,
            self.prior,
        )
        for record in steps:
            self.on_step(record)
            if record.step % settings.checkpoint_every == 0 or record.step == record.total:
                write_tensors(partial, state.state_dict())
        state.whole = False  # a consolidation that is interrupted starts over from the state at the last step
        trained = self._trained_task()
        reports: dict[str, float] = {}
        for phase in ("consolidate", "end_task"):
            for method in methods:
                for record in getattr(method, phase)(trained):
                    self.on_step(record)
                    reports |= record.values
        return reports

    def commit(self, reports: Mapping[str, float]) -> ConceptSequence:
        """Put the finished task on disk."""
        state, adapter, task = self.state, self.state.adapter, self.task
        tensors = {
            **adapter.files(),
            f"embeddings/{task.token}": {
                encoder: vector[None].cpu() for encoder, vector in state.frozen_token().items()
            },
            METHODS_STEM: {
                **self.carried,
                **{f"{n}.{key}": v for n, method in self.methods.items() for key, v in method.state_dict().items()},
            },
        }
        last = state.losses[-100:]
        values = {"loss": sum(last) / len(last), "adapter_norm": adapter.norm(), **reports}
        record = replace(task, values=values)
        log = {"loss": state.losses, "penalty": state.penalties, "adapter_norm": state.norms}
        metadata = lora_metadata(self.denoiser, record, [t.token for t in self.sequence.tasks], tensors["lora"])
        images, _ = prepare(self.concept, self.settings.resolution or self.denoiser.resolution)
        return self.sequence.commit(record, tensors, metadata, log, images)

    def _draw_prior(self) -> Prior | None:
        settings = self.settings
        if settings.prior_images == 0:
            return None
        shape, noun = self.latents.shape[1:], self.concept.class_noun
        return draw_prior(
            self.denoiser, noun, settings.prior_images, shape, settings.batch_size, self.seed, self.on_step
        )

    def _trained_task(self) -> TrainedTask:
        tokens = {**self.earlier_tokens, self.concept.token: self.state.frozen_token()}
        plain = slice(self.num_plain)  # the concept's own prompt does not fit copies of another size
        return trained_task(
            self.denoiser,
            self.state.adapter,
            tokens,
            self.sequence,
            self.task,
            latents=self.latents[plain],
            masks=None if self.masks is None else self.masks[plain],
            penalty=lambda: total_penalty(self.methods.values(), self.state.adapter),
        )

    def _prompt_encoder(self) -> Callable[[Tensor], Conditioning]:
        """Prompts of images by index; encoded once and for all where the token is frozen, else once a step."""
        tokens: dict[str, TokenVectors] = {**self.earlier_tokens, self.concept.token: {**self.state.token}}
        frozen: dict[str, Conditioning] = {}

        def encode(indices: Tensor) -> Conditioning:
            chosen = [self.prompts[i] for i in indices.tolist()]
            known = frozen if self.settings.token_learning_rate == 0 else {}
            for text in dict.fromkeys(chosen):
                if text not in known:
                    known[text] = self.denoiser.encode_prompt(text, tokens)
            return Conditioning.cat([known[text] for text in chosen])

        return encode


def _encode_pool(denoiser: Denoiser, pool: Pool) -> tuple[Tensor, Tensor | None]:
    """Latents [N, C, h, w] and masks [N, 1, h, w], once for the whole task."""
    latents = encode_one_by_one(denoiser, pool.images)
    if pool.masks is None:
        return latents, None
    return latents, F.interpolate(pool.masks, latents.shape[-2:], mode="area").to(latents.device)
