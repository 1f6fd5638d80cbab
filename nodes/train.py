"""The node that teaches one concept."""

from functools import partial
from typing import Any

from comfy_api.v0_0_2 import io

from ..trainer.adapters.layouts import load_lora
from ..trainer.bases.comfyui.apply import apply_lora, clip_with_tokens
from ..trainer.bases.comfyui.base import ComfyBase
from ..trainer.bases.comfyui.live import live_draw
from ..trainer.concept import Concept as ConceptImages
from ..trainer.disk.sequence import ConceptSequence as Sequence
from ..trainer.settings import TrainSettings
from ..trainer.task import StepRecord
from ..trainer.teach import teach
from .host import Progress, lora_names, lora_path, sequence_root, training_mode
from .live_course import live_course
from .setting_inputs import setting_inputs
from .sockets import CATEGORY, Concept, ConceptSequence, Options

NO_LORA = "[None]"  # the core's word in its own trainer


class TrainContinualLora(io.ComfyNode):
    """Train Continual LoRA: add one concept to a sequence."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The models, the concept, what came before, and the settings."""
        return io.Schema(
            node_id="ContinualLoRA_Train",
            display_name="Train Continual LoRA",
            category=CATEGORY,
            description="Teaches the model one concept and keeps the earlier ones of the sequence. A concept that is "
            "already on disk with the same images and settings is not trained again; an interrupted training goes on "
            "where it stopped when you queue it again.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, without this sequence's LoRA."),
                io.Clip.Input("clip", tooltip="The base model's text encoder."),
                io.Vae.Input("vae", tooltip="The base model's VAE."),
                Concept.Input("concept", tooltip="From Load Concept Images."),
                io.String.Input(
                    "sequence_name",
                    default="my concepts",
                    tooltip="Folder in output/continual_lora that a new sequence is kept in. Has no effect when a "
                    "sequence is connected.",
                ),
                *setting_inputs(advanced=False),
                ConceptSequence.Input(
                    "sequence", tooltip="What was taught before; nothing starts anew.", optional=True
                ),
                Options.Input("options", tooltip="From Continual LoRA Options.", optional=True),
                io.Combo.Input(
                    "existing_lora",
                    options=[NO_LORA, *lora_names()],
                    default=NO_LORA,
                    tooltip="A LoRA that a new sequence starts from, of any tool, if it holds keys and values of the "
                    "cross-attention and nothing else. Any other belongs into Load LoRA before this node.",
                    optional=True,
                ),
            ],
            outputs=[
                ConceptSequence.Output(display_name="sequence", tooltip="The sequence with this concept added."),
                io.Model.Output(display_name="model", tooltip="The model with the result applied."),
                io.Clip.Output(display_name="clip", tooltip="Understands <token> of every concept so far."),
                io.LoraModel.Output(display_name="lora", tooltip="The LoRA, for the core's own nodes."),
                io.LossMap.Output(display_name="loss_map", tooltip="The loss of every step, for Plot Loss Graph."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, existing_lora: str | None = NO_LORA, **others: object) -> str:
        """Changes when the file of the existing LoRA does; None is what a link will bring."""
        if existing_lora is None or existing_lora == NO_LORA:
            return NO_LORA
        found = lora_path(existing_lora).stat()
        return f"{found.st_size} {found.st_mtime_ns}"

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        concept: ConceptImages,
        sequence_name: str,
        sequence: Sequence | None = None,
        options: dict[str, Any] | None = None,
        existing_lora: str = NO_LORA,
        **basic: Any,
    ) -> io.NodeOutput:
        """Check, train or find the finished task, apply it."""
        progress = Progress()
        with live_course(cls.hidden) as course, training_mode():
            settings = TrainSettings(**basic, **(options or {}))
            base = ComfyBase(model, clip, vae)
            before = sequence or Sequence.create(sequence_root(sequence_name), base.fingerprint)
            start = None if existing_lora == NO_LORA else load_lora(lora_path(existing_lora), base.unet)
            draw = live_draw(model, vae, base, settings)

            def on_step(record: StepRecord) -> None:
                course.step(record)
                progress(record.phase, record.step, record.total)

            on_start = partial(course.start, before.root)
            taught = teach(base, concept, settings, before, on_step, start, draw, on_start)
            course.finish(taught)
        task = taught.tasks[-1]
        lora = taught.lora(task)
        return io.NodeOutput(
            taught,
            apply_lora(model, lora, 1.0),
            clip_with_tokens(clip, taught.tokens()),
            lora,
            {"loss": taught.log(task)["loss"]},
        )
