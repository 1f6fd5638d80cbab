"""The node that merges tasks, or whole sequences, into one LoRA."""

import json
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.v0_0_2 import io

from ..trainer.adapters.kohya import stems_from_kohya, stems_to_kohya
from ..trainer.errors import ContinualLoraError
from ..trainer.merging import MERGE_METHODS, merge
from ..trainer.metadata import tensor_hash
from ..trainer.sequence import ConceptSequence as Sequence
from ..trainer.sequence import read_metadata
from .host import apply_lora, clip_with_tokens, training_mode
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
                    "sequences. Empty means 1 for cat and svd of several sequences, else equal shares.",
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
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, tooltip="Of what dare drops."),
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
        """Choose, merge, save, apply."""
        others = [more[name] for name in sorted(more) if more[name] is not None]
        lines = [*_chosen(sequence, tasks), *others]
        weights = _strengths(strengths, len(lines), 1.0 if others and method in ("cat", "svd") else 1 / len(lines))
        tokens = _all_tokens([sequence, *others])
        with training_mode():
            merged = merge(
                method,
                [stems_from_kohya(line.lora(line.tasks[-1])) for line in lines],
                weights,
                rank=rank,
                density=density,
                rng=torch.Generator().manual_seed(seed),
            )
            lora = stems_to_kohya(merged)
        path = save_tensors(
            Path(folder_paths.get_output_directory()) / "loras",
            Path(filename).name,
            lora,
            _metadata(lines, lora, list(tokens), method),
        )
        return io.NodeOutput(
            lora, apply_lora(model, lora, 1.0), clip_with_tokens(clip, tokens), str(path), ui={"text": [str(path)]}
        )


def _chosen(sequence: Sequence, tasks: str) -> list[Sequence]:
    try:
        numbers = [int(part) for part in tasks.replace(",", " ").split()]
    except ValueError as error:
        raise ContinualLoraError(
            '"tasks" should be numbers such as 1, 3.', f"It is `{tasks}`.", "Correct it."
        ) from error
    return [sequence.up_to(number) for number in numbers] if numbers else [sequence]


def _strengths(text: str, count: int, default: float) -> list[float]:
    try:
        given = [float(part) for part in text.replace(",", " ").split()] or [default] * count
    except ValueError as error:
        raise ContinualLoraError(
            '"strengths" should be numbers such as 1.0, 0.8.', f"It is `{text}`.", "Correct it."
        ) from error
    if len(given) != count:
        raise ContinualLoraError(
            f'"strengths" should have one number for each of the {count} merged LoRAs.',
            f"It has {len(given)}.",
            "Add or remove numbers, or leave it empty.",
        )
    return given


def _all_tokens(lines: list[Sequence]) -> dict[str, Any]:
    tokens: dict[str, Any] = {}
    for line in lines:
        for name, vectors in line.tokens().items():
            known = tokens.setdefault(name, vectors)
            if any(not torch.equal(known[key], vectors[key]) for key in vectors):
                raise ContinualLoraError(
                    "Sequences that are merged should have different tokens.",
                    f"`{name}` stands for different concepts in two of them.",
                    "Teach one of them again under another token.",
                )
    return tokens


def _metadata(lines: list[Sequence], lora: dict[str, Any], tokens: list[str], method: str) -> dict[str, str]:
    first = lines[0]
    kept = read_metadata(first.folder(first.tasks[-1]) / "lora.safetensors")
    names = [f"<{token}>" for token in tokens]
    return {
        **{key: value for key, value in kept.items() if key.startswith(("ss_base", "ss_res", "modelspec."))},
        "ss_network_module": "networks.lora",
        "ss_training_comment": f"Continual LoRA, merged by {method}",
        "modelspec.title": f"{' '.join(names)} (Continual LoRA, merged)",
        "modelspec.trigger_phrase": ", ".join(names),
        "modelspec.merged_from": ", ".join(line.tasks[-1].key[:12] for line in lines),
        "modelspec.hash_sha256": "0x" + tensor_hash(lora),
        "continual_lora.tokens": json.dumps(names),
        "continual_lora.base": first.base,
    }
