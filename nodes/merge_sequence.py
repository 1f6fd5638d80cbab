"""The node that merges tasks, or whole sequences, into one LoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io

from ..trainer.bases.comfyui.apply import apply_lora, clip_with_tokens
from ..trainer.bases.comfyui.base import model_fingerprint
from ..trainer.disk.names import check_file_name, shown
from ..trainer.disk.sequence import ConceptSequence as Sequence
from ..trainer.errors import ContinualLoraError
from ..trainer.merging import MERGE_METHODS
from ..trainer.merging.lines import merge_sequences
from .host import check_widgets, training_mode
from .save_sequence import save_tensors
from .sockets import CATEGORY, ConceptSequence


class MergeConceptSequence(io.ComfyNode):
    """Merge Concept Sequence: several LoRAs become one file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Up to four sequences, their tasks and strengths, and the method."""
        more = [
            ConceptSequence.Input(
                f"sequence_{i}", tooltip="Another sequence; its newest task is merged.", optional=True
            )
            for i in (2, 3, 4)
        ]
        return io.Schema(
            node_id="ContinualLoRA_MergeSequence",
            display_name="Merge Concept Sequence",
            category=CATEGORY,
            description="Merges the LoRAs of chosen tasks of one sequence, or of several sequences, into one LoRA, "
            "and puts it and all tokens on the model.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model of the sequences."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                ConceptSequence.Input("sequence", tooltip="The first sequence."),
                io.String.Input(
                    "tasks",
                    default="",
                    tooltip="Which tasks of the first sequence to merge, such as 1, 3. Empty means its newest.",
                ),
                io.String.Input(
                    "strengths",
                    default="",
                    tooltip="One factor for each merged LoRA, such as 1.0, 0.8: tasks first, then the other "
                    "sequences. Empty means equal shares for tasks of one sequence, 1 each for different sequences.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(MERGE_METHODS),
                    default="cat",
                    tooltip="cat: the exact sum. svd: the sum at a given rank. linear, ties, dare: on the factors, for "
                    "tasks of one sequence.",
                ),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="Rank of svd; 0 means the largest merged."),
                io.Float.Input(
                    "density", default=0.5, min=0.01, max=1.0, step=0.01, tooltip="Share kept by ties and dare."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Of what dare drops.",
                ),
                io.String.Input("filename", default="merged", tooltip="Name of the file in output/loras."),
                *more,
            ],
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="The merged LoRA."),
                io.Model.Output(display_name="model", tooltip="The model with the merged LoRA."),
                io.Clip.Output(display_name="clip", tooltip="Understands <token> of every merged concept."),
                io.String.Output(display_name="lora_path", tooltip="Where the file was written."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        sequence: Sequence,
        tasks: str,
        strengths: str,
        method: str,
        rank: int,
        density: float,
        seed: int,
        filename: str,
        **more: Sequence,
    ) -> io.NodeOutput:
        """Merge, save, apply."""
        check_file_name(filename, "filename")
        check_widgets(cls, method=method, rank=rank, density=density, seed=seed)
        others = [more[name] for name in sorted(more) if more[name] is not None]
        with training_mode():
            sequence.check_base(model_fingerprint(model))
            merged = merge_sequences(
                [sequence, *others],
                _numbers(tasks, "tasks", int),
                _numbers(strengths, "strengths", float),
                method,
                rank=rank,
                density=density,
                seed=seed,
            )
        folder = Path(folder_paths.get_output_directory()) / "loras"
        path = save_tensors(folder, filename, merged.lora, merged.metadata)
        applied = apply_lora(model, merged.lora, 1.0), clip_with_tokens(clip, merged.tokens)
        return io.NodeOutput(merged.lora, *applied, str(path), ui={"text": [str(path)]})


def _numbers(text: str, name: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise ContinualLoraError(
            f'"{name}" should be numbers with commas between them.', f"It is {shown(text)}.", "Correct it."
        ) from error
