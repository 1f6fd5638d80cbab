"""Teach one concept: check, find what is already there, train, commit; cancel at any step without loss."""

from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from PIL import Image

from .adapters import ADAPTERS
from .adapters.factors import Lora
from .apply import tokens_on
from .concept import Concept, prepare
from .denoiser import Denoiser
from .disk.lock import writing
from .disk.manifest import TaskRecord
from .disk.metadata import lora_metadata
from .disk.partial import WAITING, PhaseFile, check_room, patiently, restore_partial, room_needed, save_partial
from .disk.sequence import CONSOLIDATION, METHODS_STEM, ConceptSequence
from .loop import total_penalty, train_concept
from .planning import check_fits, largest_pass, task_record, task_seed
from .recipes import adapter_name, build_methods
from .settings import TrainSettings
from .task import StepRecord, TrainedTask, step_rng
from .trained import trained_task
from .training import latent_cache, samples, tensorboard
from .training.checkpointing import checkpoint_blocks
from .training.data import TrainingData
from .training.encoding import PromptEncoder
from .training.memory import told_of_no_room
from .training.precision import in_format, loss_scaler
from .training.samples import Draw, own_draw
from .training.state import TrainState
from .training.validation import is_due
from .work import ALONE, Work


def teach(
    denoiser: Denoiser,
    concept: Concept,
    settings: TrainSettings,
    sequence: ConceptSequence,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    start: Lora | None = None,
    draw: Draw | None = None,
    on_start: Callable[[TaskRecord, Mapping[str, list[float]]], None] = lambda task, log: None,
    work: Work = ALONE,
) -> ConceptSequence:
    """Add one concept to a sequence.

    Args:
        denoiser: a fresh view of the base; it carries the new adapter afterwards.
        concept: what to teach.
        settings: how.
        sequence: the line to go on from.
        on_step: told after every step of every phase; what it raises stops the training, which can be resumed.
        start: a LoRA of another training that the first concept starts from.
        draw: draws what `sample_every` asks for, on `denoiser`; by default with the trainer's own sampler.
        on_start: told the task and the log of the steps made earlier, before the first step; not if nothing is trained.
        work: who does it; the first writes the files.

    Returns:
        The line with the concept as its newest task; at once, without training, if it is on disk already.
    """
    sequence = _line_before(sequence, concept, settings, denoiser.changes, start)
    check_fits(sequence, concept, settings, denoiser, start)
    task = task_record(sequence, concept, settings, start, denoiser.changes)
    work.agree(task.key)
    if done := sequence.find(task.key):
        return done
    curves = sequence.root / tensorboard.FOLDER / task.folder
    with (
        writing(sequence.root, f"teaching <{concept.token}>") if work.first else nullcontext(),
        tensorboard.logged(on_step, curves) if settings.tensorboard and work.first else nullcontext(on_step) as report,
        told_of_no_room(settings),
    ):
        done = sequence.find(task.key)
        work.agree(f"{task.key}, {'not' if done is None else ''} there")
        if done:  # another run was faster
            return done
        training = _Training(denoiser, concept, settings, sequence, task, report, draw, start, work)
        num_pixels = len(concept.images) * (settings.resolution or denoiser.resolution) ** 2
        uses = set().union(*(method.uses for method in training.methods.values()))
        more = {"in_update": settings.fisher_space == "update", "again": "consolidation" in uses}
        check_room(sequence.root, room_needed(training.state, training.carried, num_pixels, **more))
        partial = sequence.partial_path(task.key)
        restore_partial(partial, training.state)
        on_start(task, training.state.figures())
        try:
            reports = training.run()
            committed = training.commit(reports) if work.first else sequence
            work.agree(task.key)
            return sequence.find(task.key) or committed
        except BaseException:
            if work.first and training.state.whole:  # else the last checkpoint stays what the training goes on from
                save_partial(partial, training.state)
            raise


def _line_before(
    sequence: ConceptSequence,
    concept: Concept,
    settings: TrainSettings,
    changes: Mapping[str, str],
    start: Lora | None,
) -> ConceptSequence:
    """Where this very concept was taught, if the sequence was opened with it in; else the sequence as it is.

    A graph that opens a sequence and goes on from it is queued again, or goes on with its second training.
    """
    for task in sequence.tasks:
        if task.token == concept.token:
            before = sequence.up_to(task.index - 1)
            if task_record(before, concept, settings, start, changes).key == task.key:
                return before
    return sequence


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
        draw: Draw | None = None,
        start: Lora | None = None,
        work: Work = ALONE,
    ) -> None:
        self.draw = draw or own_draw(denoiser, settings)
        denoiser = work.shared(in_format(denoiser, settings.mixed_precision))
        self.denoiser, self.concept, self.settings = denoiser, concept, settings
        self.sequence, self.task, self.on_step, self.work = sequence, task, on_step, work
        self.seed = task_seed(task)
        # Before there is an adapter: the base draws its class noun.
        self.data = TrainingData(denoiser, concept, settings, sequence.root / latent_cache.FOLDER, self.seed, on_step)
        samples_a_pass = largest_pass(settings, len(sequence.tasks))
        denoiser.make_room((samples_a_pass, *self.data.latents.shape[1:]), settings.gradient_checkpointing)
        if settings.gradient_checkpointing:
            checkpoint_blocks(denoiser.unet)
        rng = step_rng(self.seed, "initialize", 0)
        kind = ADAPTERS[adapter_name(settings.recipe, settings.adapter)]
        adapter = kind(denoiser.unet, settings.rank, settings.effective_alpha, rng)
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
        scaler = loss_scaler(denoiser, settings.mixed_precision)
        self.state = TrainState(adapter, denoiser.word_vectors(concept.class_noun), settings, scaler)
        work.together(self.state.parameters.values())
        self.earlier_tokens = tokens_on(denoiser.device, sequence)
        self.encode = PromptEncoder(denoiser, concept.token, self.state, self.earlier_tokens, settings)
        held_back = self.data.validation.prompts if self.data.validation else []
        self.encode.check_lengths([*self.data.prompts, *held_back])
        for method in self.methods.values():  # before an interrupted training is restored
            method.begin_task(adapter)

    def run(self) -> dict[str, float]:
        """All phases of the task; returns the last value of every figure that was reported."""
        state, methods, settings = self.state, self.methods.values(), self.settings
        partial = self.sequence.partial_path(self.task.key)
        steps = train_concept(
            self.denoiser,
            self.data.buckets,
            self.encode.of_images(self.data.prompts),
            state,
            methods,
            settings,
            self.seed,
            self.data.prior,
            self.work,
        )
        self._validate()  # before the first step, or what an interruption left undone
        self._draw()
        for record in steps:
            values = {**record.values, **self._validate()}
            self.on_step(replace(record, values=values, picture=self._draw()))
            due = record.step % settings.checkpoint_every == 0 or record.step == record.total
            if due and self.work.first:
                save_partial(partial, state)
        # The state is no longer whole: what is interrupted from here on goes on from that at the last step.
        trained = self._trained_task()
        reports: dict[str, float] = {}
        for phase in ("consolidate", "end_task"):
            for method in methods:
                records = getattr(method, phase)(trained)
                try:
                    for record in records:
                        self.on_step(record)
                        reports |= record.values
                finally:
                    if isinstance(records, Generator):  # which keeps its state when it is stopped
                        records.close()
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
        log = state.figures()
        if state.scales:
            values["skipped_steps"] = state.skipped_steps
        if state.validations:
            values["validation_loss"] = log["validation_loss"][-1]
        record = replace(task, values=values)
        metadata = lora_metadata(self.denoiser, record, [t.token for t in self.sequence.tasks], tensors["lora"])
        images, _ = prepare(self.concept, self.settings.resolution or self.denoiser.resolution)
        return patiently(
            lambda: self.sequence.commit(record, tensors, metadata, log, images),
            lambda tries, most: self.on_step(StepRecord(WAITING, tries, most, 0.0)),
        )

    def _validate(self) -> dict[str, float]:
        """What is to be reported of the state as it is: nothing where it is not due, or was measured already."""
        state, settings, seed = self.state, self.settings, self.seed
        if self.data.validation is None or not is_due(state.step, settings) or state.step in state.validations:
            return {}
        with state.result():
            error = self.data.validation.error(self.denoiser, self.encode, settings, seed)
        state.validations[state.step] = error
        return {"validation_loss": error}

    def _draw(self) -> Image.Image | None:
        """A picture of the state as it is: none where it is not due, or was drawn already."""
        path = samples.file_of(self.sequence.root / samples.FOLDER / self.task.folder, self.state.step)
        if not self.work.first or not samples.is_due(self.state.step, self.settings) or path.exists():
            return None
        with self.work.apart(), self.state.result(), torch.no_grad():
            text = samples.sample_prompt(self.concept, self.settings)
            picture = self.draw(self.encode([text]), self.encode([""]), self.data.latents.shape[1:])
        samples.keep(path, picture)
        return picture

    def _trained_task(self) -> TrainedTask:
        tokens = {**self.earlier_tokens, self.concept.token: self.state.frozen_token()}
        latents, masks = self.data.plain
        return trained_task(
            self.denoiser,
            self.state.adapter,
            tokens,
            self.sequence,
            self.task,
            latents=latents,
            masks=masks,
            penalty=lambda: total_penalty(self.methods.values(), self.state.adapter),
            scaler=self.state.scaler,
            work=self.work,
            consolidation=PhaseFile(self.sequence.partial_path(self.task.key, CONSOLIDATION), self.work.first),
        )
