"""The node that shows what a sequence remembers."""

from typing import Any

import comfy.samplers
from comfy_api.v0_0_2 import io

from ..trainer.bases.comfyui.base import ComfyBase, model_fingerprint, model_resolution
from ..trainer.bases.comfyui.sampling import host_artist
from ..trainer.disk.sequence import ConceptSequence as Sequence
from ..trainer.errors import ContinualLoraError
from ..trainer.evaluation.evaluate import evaluate
from ..trainer.evaluation.report import contact_sheet, curves, forgetting_map, markdown_table, write_evaluation
from ..trainer.metrics.features import FeatureEncoder
from ..trainer.metrics.features.clip_vision import HostClipVision
from ..trainer.metrics.features.efficientnet import EfficientNetLite0, packages
from ..trainer.metrics.features.open_clip import OpenClip
from ..trainer.overview import choice_of
from .host import Progress, check_widgets, image_batch, training_mode
from .sockets import CATEGORY, ConceptSequence

NOT_CONNECTED = object()


class EvaluateConceptSequence(io.ComfyNode):
    """Evaluate Concept Sequence: what was learned, what was forgotten."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The models, the sequence, how to draw, how to compare."""
        return io.Schema(
            node_id="ContinualLoRA_EvaluateSequence",
            display_name="Evaluate Concept Sequence",
            category=CATEGORY,
            description="Draws every concept as the model was after every task, compares with the real images, and "
            "writes a report. Images that are on disk already are not drawn again.",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, without the sequence."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                ConceptSequence.Input("sequence", tooltip="From Train Continual LoRA or Load Concept Sequence."),
                io.Int.Input(
                    "images", default=8, min=2, max=256, tooltip="Of each concept after each task; more are surer."
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="Of the noise."
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Of the sampler."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free guidance."),
                io.Combo.Input(
                    "sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="ddim", tooltip="As in KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="normal", tooltip="As in KSampler."
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Side of the images in pixels; 0 is the base's own.",
                ),
                io.Int.Input(
                    "dc_trials",
                    default=8,
                    min=0,
                    max=1000,
                    tooltip="Draws for the diffusion classifier's accuracy on the training images; 0 leaves it out.",
                ),
                io.Int.Input(
                    "spectrum_draws",
                    default=64,
                    min=0,
                    max=4096,
                    tooltip="Samples for the spectrum of the newest task's Fisher; 0 leaves it out.",
                ),
                io.String.Input(
                    "open_clip_weights",
                    default="",
                    tooltip="A .safetensors file of an open_clip model, or a tag of one that is in the local Hugging "
                    "Face cache. Empty takes EfficientNet-Lite0. Nothing is downloaded; CLIP_VISION comes first.",
                ),
                io.String.Input(
                    "open_clip_architecture", default="ViT-B-32", tooltip="Of these weights, as open_clip names it."
                ),
                io.ClipVision.Input(
                    "clip_vision", tooltip="Compares images by this model instead (Load CLIP Vision).", optional=True
                ),
            ],
            outputs=[
                io.Image.Output(display_name="contact_sheet", tooltip="Rows: after each task. Columns: concepts."),
                io.Image.Output(
                    display_name="heat_map", tooltip="Distance to the real images, the same rows and columns."
                ),
                io.Image.Output(display_name="curves", tooltip="The same as lines; a rising one is being forgotten."),
                io.String.Output(display_name="table", tooltip="All figures, as Markdown."),
            ],
        )

    @classmethod
    def validate_inputs(cls, open_clip_weights: str | None, clip_vision: Any = NOT_CONNECTED) -> bool | str:
        """Before anything of the graph runs: whether what compares the images is there. A connected input is None."""
        if open_clip_weights is not None and not open_clip_weights.strip() and clip_vision is NOT_CONNECTED:
            try:
                packages()
            except ContinualLoraError as error:
                return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        sequence: Sequence,
        images: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        resolution: int,
        dc_trials: int,
        spectrum_draws: int,
        open_clip_weights: str,
        open_clip_architecture: str,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        """Check, draw, measure, write."""
        widgets = {"images": images, "seed": seed, "steps": steps, "cfg": cfg, "sampler_name": sampler_name}
        widgets |= {"scheduler": scheduler, "resolution": resolution, "dc_trials": dc_trials}
        check_widgets(cls, **widgets, spectrum_draws=spectrum_draws)
        encoder: FeatureEncoder
        if clip_vision is not None:
            encoder = HostClipVision(clip_vision)
        elif open_clip_weights.strip():
            encoder = OpenClip(open_clip_weights.strip(), open_clip_architecture)
        else:
            encoder = EfficientNetLite0()
        with training_mode():
            sequence.check_base(model_fingerprint(model))
            side = resolution or model_resolution(model)
            artist = host_artist(model, clip, vae, images, seed, steps, cfg, sampler_name, scheduler, side)
            evaluation = evaluate(
                sequence,
                artist,
                encoder,
                lambda: ComfyBase(model, clip, vae),
                dc_trials,
                spectrum_draws,
                Progress(),
            )
        folder = write_evaluation(evaluation)
        pictures = [contact_sheet(evaluation), forgetting_map(evaluation), curves(evaluation)]
        return io.NodeOutput(
            *(image_batch(picture) for picture in pictures),
            markdown_table(evaluation),
            ui={
                "text": [str(folder / "report.html")],
                "sequence": [choice_of(sequence)],
                "evaluation": [folder.name],
            },
        )
