"""Teach two concepts on a checkpoint, and compare what was trained with what the core's LoraLoader makes of the file.

`python round_trip.py COMFYUI PARENT CHECKPOINT`: PARENT holds the pack as `continual_lora`. Prints a JSON object: what
was compared -> the largest difference in the prediction of x_0, and what the host complained of.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import json
import logging
import sys
from pathlib import Path
from typing import Any

OURS, THEIRS = "photo of a <my-fox> animal, (red:1.2)", "photo of a embedding:my-fox animal, (red:1.2)"
SMALL = {"steps": 3, "rank": 2, "resolution": 64, "batch_size": 1, "fisher_draws": 2, "learning_rate": 0.02}


class Complaints(logging.Handler):
    """Keeps the host's warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.texts.append(record.getMessage())


class Comparison:
    """One checkpoint, one x_t at three levels of noise, and the predictions of x_0 on it."""

    def __init__(self, comfyui: Path, parent: Path, checkpoint: Path) -> None:
        import torch
        from continual_lora.tests.comfy.checkpoint import load
        from continual_lora.tests.comfy.loss_parity import host_sigma

        self.model, self.clip, self.vae = load(comfyui, checkpoint)
        self.parent, rng = parent, torch.Generator().manual_seed(0)
        shape = (3, self.model.model.latent_format.latent_channels, 8, 8)
        self.x_0, self.noise = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
        self.t = torch.tensor([10, 500, 950])
        self.sigma = host_sigma(self.model.model, self.t)
        self.x = self.model.model.model_sampling.noise_scaling(self.sigma, self.noise.clone(), self.x_0)

    def base(self) -> Any:
        """A fresh view."""
        from continual_lora.trainer.bases.comfyui.base import ComfyBase

        return ComfyBase(self.model, self.clip, self.vae)

    def taught(self, token: str, name: str, line: Any = None, start: Any = None, **settings: Any) -> Any:
        """A sequence after one more concept of random images."""
        import torch
        from continual_lora.trainer.concept import concept_from_batch
        from continual_lora.trainer.disk.sequence import ConceptSequence
        from continual_lora.trainer.settings import TrainSettings
        from continual_lora.trainer.teach import teach

        base = self.base()
        images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(len(name)))
        concept = concept_from_batch(images, token=token, class_noun="animal", name=token)
        line = line or ConceptSequence.create(self.parent / name, base.fingerprint)
        return teach(base, concept, TrainSettings(**(SMALL | settings)), line, start=start)

    def by_view(self, line: Any) -> Any:
        """With what was trained on a view, and the token in our words."""
        from continual_lora.trainer.apply import attach
        from continual_lora.trainer.losses.denoising import NoisedBatch

        view = self.base()
        _, tokens = attach(view, line)
        (prediction,) = NoisedBatch(view, self.x_0, self.t, self.noise).predict([view.encode_prompt(OURS, tokens)])
        return self.model.model.model_sampling.calculate_denoised(self.sigma, prediction, self.x)

    def by_host(self, lora: dict[str, Any]) -> Any:
        """With a file's tensors by LoraLoader's function, and the token as an embedding."""
        from comfy import model_management
        from comfy.sd import load_lora_for_models
        from continual_lora.tests.comfy.loss_parity import more_of

        patched = load_lora_for_models(self.model, self.clip, lora, 1.0, 1.0)[0] if lora else self.model
        model_management.load_models_gpu([patched, self.clip.patcher])
        context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(THEIRS), return_pooled=True)
        prompt = {"c_crossattn": context.expand(3, -1, -1), **more_of(patched.model, pooled)}
        return patched.model.apply_model(self.x, self.sigma, **prompt)

    def look_for_embeddings(self, folder: Path) -> None:
        """Where `embedding:` of a prompt is."""
        from continual_lora.trainer.bases.comfyui.tokens import text_encoders

        for part in text_encoders(self.clip.tokenizer).values():
            part.embedding_directory = [str(folder)]


def compared(comfyui: Path, parent: Path, checkpoint: Path) -> dict[str, Any]:
    """See the module."""
    import torch
    from safetensors.torch import load_file

    both = Comparison(comfyui, parent, checkpoint)
    line = both.taught("my-fox", "taught", recipe="lora_ewc_dc")
    first = line.tasks[0]
    line = both.taught("my-cat", "taught", line, recipe="lora_ewc_dc", gradient_checkpointing=True)
    both.look_for_embeddings(line.folder(first) / "embeddings")
    tensors = load_file(line.folder(line.tasks[-1]) / "lora.safetensors")
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    with torch.no_grad():
        trained, plain = both.by_view(line), both.by_host({})
        loaded, again = converted(both, tensors)
    unchanged = {"recipe": "lora", "learning_rate": 0.0, "token_learning_rate": 0.0}
    started = both.taught("my-fox", "started", start=again, **unchanged)
    with torch.no_grad():
        loaded["a sequence from it"] = both.by_host(started.lora(started.tasks[-1]))
    embedding = load_file(line.folder(first) / "embeddings" / "my-fox.safetensors")
    return {
        "change": float((trained - plain).abs().max()),
        "differences": {name: float((trained - other).abs().max()) for name, other in loaded.items()},
        "keys": sorted(tensors),
        "embedding": {name: list(value.shape) for name, value in embedding.items()},
        "complaints": complaints.texts,
        "penalty": line.log(line.tasks[-1])["penalty"],
        "other adapters": of_other_adapters(both) if "sd15" in checkpoint.name else {},
    }


def of_other_adapters(both: Comparison) -> dict[str, dict[str, float]]:
    """What is no plain LoRA, after two concepts: how far the host is from what was trained, and what was changed."""
    import torch
    from safetensors.torch import load_file

    found = {}
    kinds = {
        "vera": {"recipe": "lora", "adapter": "vera", "learning_rate": 0.25},
        "full": {"recipe": "custom_diffusion", "learning_rate": 1e-3},
        "fresh_lora": {"recipe": "c_lora"},
    }
    for name, settings in kinds.items():
        line = both.taught("my-fox", name, **settings)
        line = both.taught("my-cat", name, line, **settings)
        both.look_for_embeddings(line.folder(line.tasks[0]) / "embeddings")
        with torch.no_grad():
            trained, plain = both.by_view(line), both.by_host({})
            loaded = both.by_host(load_file(line.folder(line.tasks[-1]) / "lora.safetensors"))
        change, difference = (float((trained - other).abs().max()) for other in (plain, loaded))
        found[name] = {"change": change, "difference": difference}
    return found


def converted(both: Comparison, tensors: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What the host predicts with the file and the conversions that it reads; the LoRA as read from the last one."""
    from continual_lora.trainer.adapters.layouts import LAYOUTS, read_lora, write_lora

    loaded, unet = {"the file": both.by_host(tensors)}, both.base().unet
    lora = read_lora(tensors, {}, unet)
    for layout in LAYOUTS:
        written, metadata = write_lora(lora, unet, layout)
        lora = read_lora(written, metadata, unet)
        assert all(value.equal(tensors[name]) for name, value in write_lora(lora, unet, "kohya")[0].items()), layout
        if layout in ("kohya", "comfyui") or next(iter(written)).startswith("transformer."):
            loaded[layout] = both.by_host(written)
    return loaded, lora


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]  # instead of this folder, of which nothing may hide ComfyUI's
    sys.stdout.write(json.dumps(compared(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))))
