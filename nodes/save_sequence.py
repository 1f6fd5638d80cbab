"""The node that writes a sequence's result where other tools look for it."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.v0_0_2 import io
from torch import equal

from ..trainer.disk.files import read_tensors, write_tensors
from ..trainer.disk.names import check_file_name
from ..trainer.disk.sequence import ConceptSequence as Sequence
from ..trainer.errors import ContinualLoraError
from .host import unused_path
from .sockets import CATEGORY, ConceptSequence


def save_tensors(folder: Path, stem: str, tensors: dict[str, Any], metadata: dict[str, str]) -> Path:
    """Write a safetensors file; a file of another content is never overwritten, the same content is found again."""

    def same(path: Path) -> bool:
        try:
            stored, own = read_tensors(path)
        except ContinualLoraError:  # not ours, and not to be written over
            return False
        return own == metadata and stored.keys() == tensors.keys() and all(equal(stored[k], tensors[k]) for k in stored)

    path = unused_path(folder, stem, same)
    if not path.exists():
        write_tensors(path, tensors, metadata)
    return path


class SaveConceptSequence(io.ComfyNode):
    """Save Concept Sequence: a LoRA and embeddings under names of your own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The sequence and a name."""
        return io.Schema(
            node_id="ContinualLoRA_SaveSequence",
            display_name="Save Concept Sequence",
            category=CATEGORY,
            description="The sequence itself is always on disk; this writes its newest LoRA to output/loras and its "
            "tokens to the embeddings folder, for Load LoRA, embedding:NAME and other programs.",
            is_output_node=True,
            inputs=[
                ConceptSequence.Input("sequence", tooltip="What to save."),
                io.String.Input("filename", default="my_concepts", tooltip="Name of the LoRA file, without ending."),
            ],
            outputs=[
                io.String.Output(
                    display_name="lora_path", tooltip="Where the LoRA was written; empty if there is none."
                ),
                io.String.Output(display_name="embeddings", tooltip="How prompts without this pack name the tokens."),
            ],
        )

    @classmethod
    def execute(cls, sequence: Sequence, filename: str) -> io.NodeOutput:
        """Write what is not there yet."""
        check_file_name(filename, "filename")
        task = sequence.tasks[-1]
        saved = []
        if tensors := sequence.lora(task):  # else only tokens were taught
            lora_folder = Path(folder_paths.get_output_directory()) / "loras"
            saved.append(str(save_tensors(lora_folder, filename, tensors, sequence.lora_metadata(task))))
        embeddings = Path(folder_paths.get_folder_paths("embeddings")[0])
        names = []
        for token, vectors in sequence.tokens().items():
            path = save_tensors(embeddings, token, {key: value[None] for key, value in vectors.items()}, {})
            names.append(f"embedding:{path.stem}")
        return io.NodeOutput("".join(saved), " ".join(names), ui={"text": [*saved, *names]})
