"""What a task will be, and whether it can be: all that is known before any training."""

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from .adapters import ADAPTERS
from .adapters.factors import Lora
from .adapters.layers import cross_attention_layers
from .adapters.lora import state_of
from .concept import Concept
from .denoiser import Denoiser
from .disk.manifest import TaskRecord
from .disk.metadata import tensor_hash
from .disk.names import MAX_PROMPT, check_words
from .disk.sequence import ConceptSequence, digest
from .errors import ContinualLoraError
from .losses.min_snr import check_min_snr
from .recipes import adapter_name, build_methods
from .settings import TrainSettings
from .training.optimizers import check_optimizer
from .training.precision import check_precision
from .training.tensorboard import writer_class
from .training.validation import num_held_back, split_off

# These change how a task is computed, not what comes out.
NOT_IN_KEY = {
    "checkpoint_every",
    "low_memory",
    "gradient_checkpointing",
    "tensorboard",
    "cache_latents",
    "sample_every",
    "sample_prompt",
    "sample_with_vae",
}


def task_record(
    sequence: ConceptSequence,
    concept: Concept,
    settings: TrainSettings,
    start: Lora | None = None,
    changes: Mapping[str, str] = MappingProxyType({}),
) -> TaskRecord:
    """The record of the task to come, its key made from all that it depends on."""
    # A setting at its default is left out, so that one that a later version adds changes no key. A default that was
    # released must therefore stay: tasks of the old one would be found for the new one.
    defaults = asdict(TrainSettings())
    chosen = {n: value for n, value in asdict(settings).items() if n not in NOT_IN_KEY and value != defaults[n]}
    depends_on: dict[str, Any] = {
        "parent": sequence.head,
        "base": sequence.base,
        "concept": [concept.name, concept.token, concept.class_noun, concept.prompt, concept.prompts],
        "images": concept.digests,
        "settings": chosen,
    }
    if start is not None:
        alphas = {layer: factors.alpha for layer, factors in start.items()}
        depends_on["start"] = [alphas, tensor_hash(state_of(start))]
    depends_on |= changes
    key, index = digest(depends_on), len(sequence.tasks) + 1
    return TaskRecord(
        key=key,
        parent=sequence.head,
        folder=f"{index:02d}-{concept.token}-{key[:12]}",
        index=index,
        concept=concept.name,
        token=concept.token,
        class_noun=concept.class_noun,
        prompt=concept.prompt,
        recipe=settings.recipe,
        settings=asdict(settings),
        image_digests=concept.digests,
        values={},
    )


def check_fits(
    sequence: ConceptSequence,
    concept: Concept,
    settings: TrainSettings,
    denoiser: Denoiser,
    start: Lora | None = None,
) -> None:
    """Everything that can be wrong, before any training.

    Raises:
        ContinualLoraError: another base, adapter, rank or alpha, a token in use, an unknown recipe, no cross-attention,
            nothing to train, a setting that does not fit the base or the recipe, an existing LoRA where the sequence
            goes on from its own.
    """
    sequence.check_base(denoiser.fingerprint)
    cross_attention_layers(denoiser.unet)
    build_methods(settings)
    for name, value in asdict(settings).items():
        if isinstance(value, str):  # the manifest could not hold it at the end
            check_words(value, name, MAX_PROMPT)
    check_optimizer(settings, denoiser.device)
    check_precision(settings.mixed_precision, denoiser.device)
    check_min_snr(settings.min_snr_gamma, denoiser)
    if settings.tensorboard:
        writer_class()
    split_off(concept, num_held_back(settings))
    adapter = adapter_name(settings.recipe, settings.adapter)
    if adapter == "token_only" and settings.token_learning_rate == 0:
        raise ContinualLoraError(
            f'With {settings.recipe}, "token_learning_rate" should be above 0: the word vector is all that is trained.',
            "It is 0.",
            "Raise it, 0.001 for example.",
        )
    if adapter == "token_only" and settings.caption_dropout:
        raise ContinualLoraError(
            f'With {settings.recipe}, "caption_dropout" should be 0: without its prompt an image trains nothing.',
            f"It is {settings.caption_dropout:g}.",
            "Set it to 0.",
        )
    if start is not None and sequence.head:
        raise ContinualLoraError(
            "Only the first concept of a sequence can start from an existing LoRA.",
            f'"{sequence.root.name}" has {len(sequence.tasks)} concepts, and goes on from its own.',
            "Choose no existing LoRA here, or start a new sequence.",
        )
    for task in sequence.tasks:
        if task.token == concept.token:
            raise ContinualLoraError(
                f'"token" should be new to "{sequence.root.name}".',
                f"`{concept.token}` already stands for its concept {task.index}, {task.concept}.",
                "Choose another token.",
            )
        own_adapter = adapter_name(task.recipe, task.adapter)
        if own_adapter != adapter:
            raise ContinualLoraError(
                f'To go on from "{sequence.root.name}", the recipe should train what its concepts did ({own_adapter}).',
                f"{settings.recipe} trains another kind of adapter ({adapter}).",
                f"Choose a recipe such as {task.recipe}, or start a new sequence.",
            )
        for name, own, now in (("rank", task.rank, settings.rank), ("alpha", task.alpha, settings.effective_alpha)):
            if name in ADAPTERS[adapter].uses and own != now:
                raise ContinualLoraError(
                    f'To go on from "{sequence.root.name}", "{name}" should be {own}, its own.',
                    f"This node is set to {name} {now}.",
                    f'Set "{name}" to {own}, or start a new sequence.',
                )


def largest_pass(settings: TrainSettings, num_earlier: int) -> int:
    """How many samples the U-Net keeps a graph of at once: images, with the prior's, or under the prompts of a method.

    Args:
        settings: of the task.
        num_earlier: concepts before it.
    """
    with_prior = 2 if settings.prior_images else 1
    prompts = [method.prompts_a_pass(num_earlier) for method in build_methods(settings).values()]
    return settings.batch_size * max([with_prior, *prompts])


def task_seed(task: TaskRecord) -> str:
    """What every draw of a task is seeded with."""
    return f"{task.settings['seed']}/{task.index}"
