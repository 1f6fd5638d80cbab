"""The node that brings the images of one concept."""

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.v0_0_2 import io, ui

from ..trainer.concept import TEMPLATE, concept_from_batch, load_concept, prepare
from ..trainer.concept_files import SUFFIXES
from ..trainer.disk.names import check_file_name, is_text, shown
from ..trainer.errors import ContinualLoraError
from .sockets import CATEGORY, Concept

NONE = "(use the images input)"
BUNDLED = "bundled: "
SAMPLES = Path(__file__).parents[1] / "trainer" / "bases" / "tiny" / "samples"
PREVIEW_SIZE = 256


def image_folders() -> list[str]:
    """Folders below ComfyUI's input that hold images, relative to it, and the samples of the pack."""
    root = Path(folder_paths.get_input_directory())
    found = {path.parent for path in root.rglob("*") if path.suffix.lower() in SUFFIXES}
    own = sorted(path.relative_to(root).as_posix() for path in found if path != root)
    return own + [f"{BUNDLED}{path.name}" for path in sorted(SAMPLES.iterdir()) if path.is_dir()]


def image_folder(choice: str) -> Path:
    """The folder behind a choice of the drop-down.

    Raises:
        ContinualLoraError: it leads out of ComfyUI's input.
    """
    if choice.startswith(BUNDLED):
        return SAMPLES / check_file_name(choice.removeprefix(BUNDLED), "folder")
    path = Path(choice)
    if path.anchor or ".." in path.parts or not path.parts or not is_text(choice) or "\0" in choice:
        raise ContinualLoraError(
            '"folder" should be a folder below ComfyUI\'s input, such as "pets/rex".',
            f"It is {shown(choice)}.",
            "Choose one of the list; press R in ComfyUI to look again.",
        )
    return Path(folder_paths.get_input_directory()) / path


class LoadConceptImages(io.ComfyNode):
    """Load Concept Images: a few images, a token, a class noun."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """A folder or a batch, and how the concept is called."""
        return io.Schema(
            node_id="ContinualLoRA_LoadConceptImages",
            display_name="Load Concept Images",
            category=CATEGORY,
            description="The images of one concept to teach, from a folder below ComfyUI's input (with captions from "
            ".txt files of the same name) or from the graph.",
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[NONE, *image_folders()],
                    tooltip="Folder below ComfyUI's input with 3 to 20 images of the concept, or a bundled sample. "
                    "Press R in ComfyUI to look again.",
                ),
                io.String.Input(
                    "token",
                    default="my-concept",
                    tooltip="The new word, written <my-concept> in prompts. Letters, digits, - and _.",
                ),
                io.String.Input(
                    "class_noun", default="animal", tooltip="What kind of thing it is, a word the model knows."
                ),
                io.String.Input(
                    "prompt",
                    default=TEMPLATE,
                    tooltip="What the images are trained under; the words in braces, token and class_noun, "
                    "are filled in.",
                ),
                io.String.Input("name", default="", tooltip="What you call it; empty means the token.", optional=True),
                io.Combo.Input(
                    "alpha",
                    options=["composite", "mask"],
                    default="composite",
                    tooltip="Transparent places: put them on white, or also leave them out of the loss.",
                    optional=True,
                ),
                io.Image.Input("images", tooltip="A batch from the graph, in place of a folder.", optional=True),
            ],
            outputs=[Concept.Output(display_name="concept", tooltip="What Train Continual LoRA teaches.")],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **others: object) -> str:
        """Changes when a file of the folder does."""
        total = hashlib.sha256(repr(sorted(others.items(), key=str)).encode())
        if folder != NONE:
            for path in sorted(image_folder(folder).iterdir()):
                if path.suffix.lower() in (*SUFFIXES, ".txt"):
                    total.update(path.name.encode() + path.read_bytes())
        return total.hexdigest()

    @classmethod
    def execute(
        cls,
        folder: str,
        token: str,
        class_noun: str,
        prompt: str,
        name: str = "",
        alpha: str = "composite",
        images: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Read, check, show."""
        words: dict[str, Any] = {
            "token": token,
            "class_noun": class_noun,
            "name": name,
            "template": prompt,
            "alpha": alpha,
        }
        if images is not None and folder == NONE:
            concept = concept_from_batch(images, **words)
        elif folder != NONE and images is None:
            concept = load_concept(image_folder(folder), **words)
        else:
            came = "Neither is given." if images is None else f'Both are: the folder "{folder}" and a batch.'
            raise ContinualLoraError(
                'A concept comes either from "folder" or from "images".',
                came,
                f'Choose a folder, or connect images and set "folder" to {NONE}.',
            )
        cropped = prepare(concept, PREVIEW_SIZE)[0].movedim(1, -1)
        # Those of a folder are in the node's panel already.
        return io.NodeOutput(concept, ui=None if images is None else ui.PreviewImage(cropped, cls=cls))
