"""The node that puts a sequence on a model."""

from typing import Any

from comfy_api.v0_0_2 import io

from ..trainer.bases.comfyui.apply import apply_lora, clip_with_tokens
from ..trainer.bases.comfyui.base import model_fingerprint
from ..trainer.disk.sequence import ConceptSequence as Sequence
from .host import check_widgets, training_mode
from .sockets import CATEGORY, ConceptSequence


class ApplyConceptSequence(io.ComfyNode):
    """Apply Concept Sequence: the model as it was after any task."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The models, the sequence, how far and how strong."""
        return io.Schema(
            node_id="ContinualLoRA_ApplySequence",
            display_name="Apply Concept Sequence",
            category=CATEGORY,
            description="Puts the sequence's LoRA on the model and makes `<token>` work in every prompt of the CLIP.",
            inputs=[
                io.Model.Input("model", tooltip="The base model that the sequence was trained on."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptSequence.Input("sequence", tooltip="From Train Continual LoRA or Load Concept Sequence."),
                io.Int.Input(
                    "up_to_task",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Take the model as it was after this task; 0 means after the newest.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05, tooltip="Factor of the LoRA; 1 as trained."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the sequence applied."),
                io.Clip.Output(display_name="clip", tooltip="Understands <token> of every concept up to that task."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, sequence: Sequence, up_to_task: int, strength: float) -> io.NodeOutput:
        """Cut the line, check the base, apply."""
        check_widgets(cls, up_to_task=up_to_task, strength=strength)
        line = sequence.up_to(up_to_task) if up_to_task else sequence
        with training_mode():
            line.check_base(model_fingerprint(model))
        return io.NodeOutput(
            apply_lora(model, line.lora(line.tasks[-1]), strength), clip_with_tokens(clip, line.tokens())
        )
