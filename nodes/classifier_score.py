"""The node that asks the model itself what an image shows."""

import json
from typing import Any

import torch
from comfy_api.v0_0_2 import io
from PIL import Image

from ..trainer.apply import apply_sequence
from ..trainer.bases.comfyui.base import ComfyBase
from ..trainer.classifier import candidate_prompts, classify
from ..trainer.concept import concept_from_batch, prepare
from ..trainer.denoiser import encode_one_by_one
from ..trainer.disk.names import MAX_PROMPT, check_words
from ..trainer.disk.sequence import ConceptSequence as Sequence
from ..trainer.images import to_pil
from ..trainer.plots import bar_chart_grid
from .host import Progress, check_widgets, image_batch, training_mode
from .sockets import CATEGORY, ConceptSequence

THUMBNAIL = 96


class DiffusionClassifierScore(io.ComfyNode):
    """Diffusion Classifier Score: which prompt explains the image best?"""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The models, the images, and what to choose from."""
        return io.Schema(
            node_id="ContinualLoRA_ClassifierScore",
            display_name="Diffusion Classifier Score",
            category=CATEGORY,
            description="Adds noise to each image and asks the model to remove it under every prompt: the prompt with "
            "the smallest error is the answer (Li et al. 2023).",
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model; a connected sequence is put on top of it here."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input("images", tooltip="One or more images to classify."),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="One candidate a line. They come after the concepts of the sequence, if one is connected.",
                ),
                io.Int.Input(
                    "trials", default=16, min=1, max=1000, tooltip="Random (time, noise) draws; more are surer, slower."
                ),
                io.Boolean.Input(
                    "pruning", default=True, tooltip="Drop the unlikely prompts early and spend the trials on the rest."
                ),
                io.Float.Input(
                    "temperature",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.001,
                    tooltip="How sharp the probabilities are; 0 fits it to the spread of the errors.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, control_after_generate=False, tooltip="Of the draws."
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="Side in pixels that the images are cropped to; 0 is the base's own.",
                ),
                ConceptSequence.Input("sequence", tooltip="Its concepts are candidates.", optional=True),
            ],
            outputs=[
                io.String.Output(display_name="predicted", tooltip="The best prompt of each image, one a line."),
                io.String.Output(display_name="probabilities", tooltip="JSON: for each image, prompt -> probability."),
                io.Image.Output(display_name="chart", tooltip="The probabilities as bars."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        images: torch.Tensor,
        prompts: str,
        trials: int,
        pruning: bool,
        temperature: float,
        seed: int,
        resolution: int,
        sequence: Sequence | None = None,
    ) -> io.NodeOutput:
        """Encode once, classify, draw."""
        check_widgets(cls, trials=trials, temperature=temperature, seed=seed, resolution=resolution)
        check_words(prompts, "prompts", MAX_PROMPT)
        taught = [task.prompt for task in sequence.tasks] if sequence else []
        candidates = candidate_prompts(taught, prompts.splitlines())
        progress = Progress()
        with training_mode(), torch.no_grad():
            base = ComfyBase(model, clip, vae)
            tokens = apply_sequence(base, sequence) if sequence else {}
            # Any token will do: only the preparation of the images is wanted.
            squares, _ = prepare(
                concept_from_batch(images, token="image", class_noun="image"), resolution or base.resolution
            )
            latents = encode_one_by_one(base, squares)
            encoded = [base.encode_prompt(prompt, tokens) for prompt in candidates]
            result = classify(
                base,
                latents,
                encoded,
                trials,
                seed,
                pruned=pruning,
                temperature=temperature,
                on_pass=lambda done, total: progress("classify", done, total),
            )
        scores = result.scores.T.tolist()
        predicted = [candidates[i] for i in result.predicted.tolist()]
        thumbnails = [_thumbnail(square) for square in squares]
        chart = bar_chart_grid(candidates, scores, "Diffusion classifier scores", thumbnails)
        table = [dict(zip(candidates, row, strict=True)) for row in scores]
        return io.NodeOutput(
            "\n".join(predicted), json.dumps(table, indent=1), image_batch(chart), ui={"text": predicted}
        )


def _thumbnail(square: torch.Tensor) -> Image.Image:
    return to_pil(square).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
