"""Every setting of a training, said once: type, default, limits, help; widgets, flags and metadata come from here."""

from dataclasses import dataclass, field, fields
from typing import Any

from .errors import ContinualLoraError


def setting(default: Any, help: str, **limits: Any) -> Any:  # noqa: ANN401
    """A dataclass field with its help and limits (`minimum`, `maximum`, `step`, `choices`, `advanced`)."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class TrainSettings:
    """How one concept is taught."""

    recipe: str = setting(
        "lora_dsc_ewc",
        "What is trained, and what keeps the earlier concepts.",
    )
    steps: int = setting(1000, "Training steps for this concept.", minimum=1, maximum=100_000)
    rank: int = setting(16, "Rank of the LoRA. Every concept of a sequence shares it.", minimum=1, maximum=128)
    learning_rate: float = setting(2e-4, "Learning rate of the LoRA.", minimum=0.0, maximum=1.0, step=1e-6)
    penalty_weight: float = setting(
        10.0,
        "How strongly earlier concepts are held (lambda); 1 to 1000 is sensible: more keeps more and learns less. Has "
        "no effect on the first concept.",
        minimum=0.0,
        maximum=1e9,
        step=1.0,
    )
    seed: int = setting(0, "Seed of every random draw. Same seed, same file.", minimum=0, maximum=2**63 - 1)
    adapter: str = setting(
        "lora",
        "What the LoRA recipes train: a LoRA, or VeRA, two vectors a layer, saved as a LoRA.",
        choices=("lora", "vera"),
        advanced=True,
    )
    batch_size: int = setting(2, "Images per pass of the U-Net.", minimum=1, maximum=256, advanced=True)
    alpha: float = setting(
        0.0,
        "LoRA alpha; 0 means the same as the rank. VeRA has none.",
        minimum=0.0,
        maximum=1024.0,
        step=0.5,
        advanced=True,
    )
    token_learning_rate: float = setting(
        1e-3, "Learning rate of the concept's word vector.", minimum=0.0, maximum=1.0, step=1e-6, advanced=True
    )
    weight_decay: float = setting(
        0.0, "Weight decay of AdamW on the LoRA.", minimum=0.0, maximum=1.0, step=0.001, advanced=True
    )
    gradient_clip: float = setting(
        1.0, "Largest gradient norm of a step.", minimum=0.001, maximum=1e6, step=0.1, advanced=True
    )
    schedule: str = setting(
        "constant",
        "Course of the learning rates after the warm-up.",
        choices=("constant", "cosine", "linear"),
        advanced=True,
    )
    warmup_steps: int = setting(
        0, "Steps over which the learning rates rise from zero.", minimum=0, maximum=100_000, advanced=True
    )
    resolution: int = setting(
        0,
        "Side of the training images in pixels, a multiple of 8; 0 is the base's own.",
        minimum=0,
        maximum=4096,
        advanced=True,
    )
    flip: bool = setting(False, "Also train on the mirrored images.", advanced=True)
    rescale: bool = setting(
        False,
        "Also train on smaller and on enlarged copies of the images, whose prompts say so (Custom Diffusion's "
        "augmentation).",
        advanced=True,
    )
    prior_images: int = setting(
        0,
        "Images of the class noun that the base draws before the training; each step also trains on as many of them "
        "as on the concept, so that the class stays.",
        minimum=0,
        maximum=1000,
        advanced=True,
    )
    mixed_precision: str = setting(
        "auto",
        "Number format of the training passes; auto takes what the GPU computes in natively: bf16, else fp16, in which "
        "the loss is scaled. CPUs and other devices stay in the model's own.",
        choices=("auto", "no", "bf16", "fp16"),
        advanced=True,
    )
    base_concept: str = setting(
        "",
        "A common concept that the base knows, the anchor class c_0 of the scores. Empty means `photo of a person`, "
        "or `photo of a tree` when the class noun is a person.",
        advanced=True,
    )
    num_prompts: int = setting(
        5, "Prompts compared by the diffusion classifier (k).", minimum=2, maximum=64, advanced=True
    )
    temperature: float = setting(
        0.0,
        "Temperature tau of the scores; 0 calibrates it to the spread of the errors.",
        minimum=0.0,
        maximum=100.0,
        step=0.001,
        advanced=True,
    )
    fisher_draws: int = setting(
        50, "Random (image, time, noise) draws for the Fisher information.", minimum=1, maximum=100_000, advanced=True
    )
    fisher_decay: float = setting(
        1.0,
        "Share of the earlier Fisher that is kept at each concept (gamma).",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    fisher_space: str = setting(
        "parameters",
        "What the Fisher weighs: the adapter's parameters, as in the paper, or the entries of the weight update, "
        "which do not depend on how it is factored.",
        choices=("parameters", "update"),
        advanced=True,
    )
    consolidation: float = setting(
        0.3,
        "Steps of the consolidation as a share of the training steps.",
        minimum=0.01,
        maximum=10.0,
        step=0.01,
        advanced=True,
    )
    low_memory: bool = setting(
        True,
        "Pass one prompt at a time while the Fisher is computed and while consolidating: the same result with the "
        "memory of one prompt.",
        advanced=True,
    )
    checkpoint_every: int = setting(
        100, "Steps between the states that a killed training goes on from.", minimum=1, maximum=100_000, advanced=True
    )
    gradient_accumulation: int = setting(
        1,
        "Passes per step: the gradients of so many batches are added up before each step, which is a larger batch in "
        "the memory of a small one.",
        minimum=1,
        maximum=256,
        advanced=True,
    )
    optimizer: str = setting(
        "adamw",
        "What makes steps of the gradients. adamw8bit keeps its moments in 8 bits (package bitsandbytes); "
        "prodigy finds the learning rates itself (package prodigyopt; set both to 1); adamw_schedulefree averages its "
        "steps instead of lowering its rate (package schedulefree).",
        choices=("adamw", "adamw8bit", "prodigy", "adamw_schedulefree"),
        advanced=True,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Compute the inside of the U-Net's blocks again on the way back instead of keeping it: the same result, less "
        "memory, slower steps.",
        advanced=True,
    )
    min_snr_gamma: float = setting(
        0.0,
        "Min-SNR weighting of the training loss: where the signal-to-noise ratio is above gamma the error counts less, "
        "so that the nearly clean times do not outvote the others. 0 is off, 5 is usual.",
        minimum=0.0,
        maximum=1000.0,
        step=0.5,
        advanced=True,
    )
    caption_dropout: float = setting(
        0.0,
        "Share of the images that a step trains under the empty prompt, so that guidance keeps working; such an image "
        "teaches the word vector nothing.",
        minimum=0.0,
        maximum=0.9,
        step=0.01,
        advanced=True,
    )
    shuffle_tags: bool = setting(
        False,
        "Captions with commas: put the parts behind the one with the token into another order at each step.",
        advanced=True,
    )
    ema_decay: float = setting(
        0.0,
        "What is kept of the average of the steps at each step (EMA); the average is the result. 0 is off, 0.99 takes "
        "in about the last 100 steps.",
        minimum=0.0,
        maximum=0.9999,
        step=0.001,
        advanced=True,
    )
    validation_every: int = setting(
        0,
        "Steps between measurements of the denoising error on fixed draws, for the log: 8 passes over each image. 0 is "
        "off.",
        minimum=0,
        maximum=100_000,
        advanced=True,
    )
    validation_images: int = setting(
        0,
        "How many images, the last by name, are held back from the training to measure on, with validation_every. 0 "
        "measures on the training images: a smoother curve, but blind to overfitting.",
        minimum=0,
        maximum=1000,
        advanced=True,
    )
    tensorboard: bool = setting(
        False,
        "Also log every step in the sequence's folder `tensorboard`, which TensorBoard shows while it trains (package "
        "tensorboard).",
        advanced=True,
    )
    cache_latents: bool = setting(
        False,
        "Keep the encoded images and the prior images in the sequence's folder `cache`, so that a training that goes "
        "on needs neither the VAE nor to draw again.",
        advanced=True,
    )
    sample_every: int = setting(
        0,
        "Steps between pictures that show the course of the training, in the node and in the sequence's folder "
        "`samples`. 0 draws none.",
        minimum=0,
        maximum=100_000,
        advanced=True,
    )
    sample_prompt: str = setting(
        "",
        "What these pictures show; the words in braces, token and class_noun, are filled in. Empty is what the images "
        "are trained under.",
        advanced=True,
    )
    sample_with_vae: bool = setting(
        True,
        "Decode these pictures with the VAE. Off takes ComfyUI's rough preview, for GPUs that cannot hold the VAE "
        "beside the training.",
        advanced=True,
    )
    aspect_buckets: bool = setting(
        False,
        "Train each image at its own aspect ratio, at about resolution x resolution pixels, instead of cutting it to a "
        "square. A batch holds images of one shape.",
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Check every value against its limits.

        Raises:
            ContinualLoraError: names the setting, its range and the value.
        """
        for item in fields(self):
            check_kind(item.name, getattr(self, item.name), item.default)
            check_limits(item.name, getattr(self, item.name), item.metadata)
        if self.resolution % 8:
            raise ContinualLoraError(
                '"resolution" should be a multiple of 8.', f"It is {self.resolution}.", "Round it to one."
            )

    @property
    def effective_alpha(self) -> float:
        """Alpha, with its 0 read as the rank."""
        return self.alpha or float(self.rank)


def check_kind(name: str, value: Any, default: Any) -> None:  # noqa: ANN401
    """Raise if `value` is of another kind than its default: a switch, a text, a whole number, or a number."""
    kinds: dict[type, tuple[str, tuple[type, ...]]] = {
        bool: ("on or off", (bool,)),
        str: ("a text", (str,)),
        int: ("a whole number", (int,)),
        float: ("a number", (int, float)),
    }
    word, allowed = kinds[type(default)]
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise ContinualLoraError(f'"{name}" should be {word}.', f"It is {value!r}.", "Set it to one.")


def check_limits(name: str, value: Any, limits: Any) -> None:  # noqa: ANN401
    """Raise if `value` lies outside the limits of its field."""
    if "choices" in limits and value not in limits["choices"]:
        raise ContinualLoraError(
            f'"{name}" should be one of {", ".join(limits["choices"])}.', f"It is `{value}`.", "Choose one of them."
        )
    if "minimum" in limits and not limits["minimum"] <= value <= limits["maximum"]:
        raise ContinualLoraError(
            f'"{name}" should lie between {limits["minimum"]} and {limits["maximum"]}.',
            f"It is {value}.",
            "Set it to a value in this range.",
        )
