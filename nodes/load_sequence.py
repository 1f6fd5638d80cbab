"""The node that opens a sequence from disk."""

import logging

from comfy_api.v0_0_2 import io

from ..trainer.disk.manifest import MANIFEST
from ..trainer.disk.names import shown
from ..trainer.disk.sequence import ConceptSequence as Sequence
from ..trainer.disk.sequence import lines_on_disk
from ..trainer.errors import ContinualLoraError
from .host import sequence_names, sequence_root, sequences_folder
from .sockets import CATEGORY, ConceptSequence

NONE = "(none on disk yet)"
log = logging.getLogger(__name__)


def choices() -> dict[str, Sequence]:
    """What the drop-down offers: a sequence's name for its newest task, "name / task" for each of the others."""
    found: dict[str, Sequence] = {}
    for name in sequence_names():
        try:
            (_, newest), *others = lines_on_disk(sequences_folder() / name).items()
        except ContinualLoraError as error:
            log.warning("The concept sequence `%s` is left out of the list: %s", name, error)
            continue
        found[name] = newest
        found |= {f"{name} / {folder}": line for folder, line in others}
    return found


class LoadConceptSequence(io.ComfyNode):
    """Load Concept Sequence: go on with, or apply, what was taught before."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A drop-down."""
        return io.Schema(
            node_id="ContinualLoRA_LoadSequence",
            display_name="Load Concept Sequence",
            category=CATEGORY,
            description="Opens a sequence that was trained earlier.",
            inputs=[
                io.Combo.Input(
                    "sequence_name",
                    options=list(choices()) or [NONE],
                    tooltip="Sequences in output/continual_lora at their newest task, and as they were after each of "
                    "the others. Press R in ComfyUI to look again.",
                )
            ],
            outputs=[
                ConceptSequence.Output(display_name="sequence", tooltip="The sequence, at the chosen task."),
                io.String.Output(display_name="tokens", tooltip="The tokens of its concepts, first to last."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, sequence_name: str) -> str:
        """Changes when a task is added."""
        return (sequence_root(sequence_name.split(" / ", maxsplit=1)[0]) / MANIFEST).read_text(encoding="utf-8")

    @classmethod
    def execute(cls, sequence_name: str) -> io.NodeOutput:
        """Open the chosen line."""
        found = choices()
        name = sequence_name.split(" / ", maxsplit=1)[0]
        if sequence_name not in found and name in sequence_names():
            lines_on_disk(sequences_folder() / name)  # says what is wrong with it
        if sequence_name not in found:
            raise ContinualLoraError(
                '"sequence_name" should be a sequence in output/continual_lora.',
                f"There is no {shown(sequence_name)}.",
                "Train one with Train Continual LoRA, or press R and choose another.",
            )
        line = found[sequence_name]
        return io.NodeOutput(line, " ".join(f"<{task.token}>" for task in line.tasks))
