"""Draw while a checkpoint is trained, and again with the finished task by the host's own LoRA loader and sampler.

`python live_samples.py COMFYUI PARENT CHECKPOINT`: PARENT holds the pack as `continual_lora`. Prints a JSON object.
"""

import json
import sys
from pathlib import Path
from typing import Any

SIDE, SEED = 64, 5


def compared(comfyui: Path, parent: Path, checkpoint: Path) -> dict[str, Any]:
    """How the last picture differs from the finished task's, and what drawing did to the model and the training."""
    import torch
    from continual_lora.trainer.bases.comfyui.checkpoint import load_checkpoint
    from continual_lora.trainer.concept import concept_from_batch
    from continual_lora.trainer.disk.sequence import ConceptSequence
    from continual_lora.trainer.images import decode
    from continual_lora.trainer.settings import TrainSettings
    from continual_lora.trainer.teach import teach

    model, clip, vae = load_checkpoint(comfyui, checkpoint)
    from continual_lora.trainer.bases.comfyui.base import ComfyBase
    from continual_lora.trainer.bases.comfyui.live import SAMPLER, SCHEDULER, STEPS, live_draw
    from continual_lora.trainer.bases.comfyui.sampling import host_artist

    rng = torch.Generator().manual_seed(0)
    concept = concept_from_batch(torch.rand(2, SIDE, SIDE, 3, generator=rng), token="fox", class_noun="animal")
    original = model.model.diffusion_model
    places = {name: value.data_ptr() for name, value in original.named_parameters()}

    def compiled(executor: Any, *args: Any) -> Any:
        """As TorchCompileModel's: MODEL's own U-Net, compiled, in the place of what is there."""
        there, executor.class_obj.diffusion_model = executor.class_obj.diffusion_model, original
        try:
            return executor(*args)
        finally:
            executor.class_obj.diffusion_model = there

    model = model.clone()
    model.add_wrapper_with_key("apply_model", "torch.compile", compiled)

    def taught(name: str, **changes: Any) -> ConceptSequence:
        rates = {"learning_rate": 0.02, "token_learning_rate": 0.02}
        common = {"recipe": "lora", "steps": 2, "rank": 2, "resolution": SIDE, "seed": SEED, "batch_size": 1, **rates}
        settings = TrainSettings(**common, **changes)
        base = ComfyBase(model, clip, vae)
        sequence = ConceptSequence.create(parent / name, base.fingerprint)
        return teach(base, concept, settings, sequence, draw=live_draw(model, vae, base, settings))

    def picture(line: ConceptSequence, step: int) -> torch.Tensor:
        return decode(line.root / "samples" / line.tasks[0].folder / f"step_{step:06d}.png")

    with_, without = taught("with", sample_every=1), taught("without")
    cfg = ComfyBase(model, clip, vae).family.cfg
    artist = host_artist(model, clip, vae, 1, SEED, STEPS, cfg, SAMPLER, SCHEDULER, SIDE)
    (finished,) = next(iter(artist.draw(with_, [concept.prompt])))
    last, first = picture(with_, 2), picture(with_, 1)

    decoded, plain = [], vae.decode
    vae.decode = lambda latents: decoded.append(1) or plain(latents)
    rough = picture(taught("rough", sample_every=2, sample_with_vae=False), 2)
    files = [sorted(path for path in line.folder(line.tasks[0]).rglob("*.*")) for line in (with_, without)]
    return {
        "device": model.load_device.type,
        "difference": float((last - finished).abs().max()),
        "difference of the steps": float((last - first).abs().max()),
        "spread": float(last.std()),
        "rough": [list(rough.shape), float(rough.std()), len(decoded)],
        "same task": with_.head == without.head
        and [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]],
        "moved": [name for name, value in original.named_parameters() if value.data_ptr() != places[name]],
        "same modules": model.model.diffusion_model is original,
    }


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]  # instead of this folder, of which nothing may hide ComfyUI's
    sys.stdout.write(json.dumps(compared(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))))
