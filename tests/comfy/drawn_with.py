"""What an evaluation takes for the same images: `python drawn_with.py COMFYUI PARENT WEIGHTS` of the embedded base.

PARENT holds the pack as `continual_lora`. Prints a JSON object: what is done to MODEL, CLIP or VAE -> what else the
images are said to depend on.
"""

import json
import sys
from pathlib import Path
from typing import Any


def told(folder: Path) -> dict[str, Any]:
    """See the module."""
    import torch
    from continual_lora.trainer.bases.comfyui.sampling import host_artist
    from continual_lora.trainer.bases.comfyui.tiny import load_tiny_base

    def how(model: Any, clip: Any, vae: Any) -> dict[str, Any]:
        return dict(host_artist(model, clip, vae, 2, 0, 1, 1.0, "ddim", "normal", 64).how)

    model, clip, vae = load_tiny_base(folder=folder)
    found = {"nothing": how(model, clip, vae), "loaded again": how(*load_tiny_base(folder=folder))}
    layers = clip.clone()
    layers.clip_layer(-2)
    found["layer"] = how(model, layers, vae)
    key = next(name for name, value in clip.cond_stage_model.named_parameters() if value.dim() == 2)
    for strength in (1.0, 0.5):
        patched = clip.clone()
        patched.add_patches({key: (torch.ones_like(clip.cond_stage_model.get_parameter(key)),)}, strength)
        found[f"LoRA {strength}"] = how(model, patched, vae)
    lasting = clip.clone()
    lasting.set_tokenizer_option("min_length", 512)
    found["tokenizer"] = how(model, lasting, vae)
    from continual_lora.trainer.bases.comfyui.base import ComfyBase

    with torch.inference_mode(False):
        for own in (clip, layers, lasting):  # a training on it is another one as well
            of_clip = {name: value for name, value in how(model, own, vae).items() if name.startswith("clip")}
            assert ComfyBase(model, own, vae).changes == of_clip
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    for sampling in ("eps", "lcm"):
        (resampled,) = ModelSamplingDiscrete().patch(model, sampling, False)
        found[sampling] = how(resampled, clip, vae)
    from comfy_extras.nodes_freelunch import FreeU_V2
    from comfy_extras.nodes_model_advanced import RescaleCFG

    for strength in (1.3, 1.4, 1.3):
        freed = FreeU_V2().patch(model, strength, 1.4, 0.9, 0.2)[0]
        assert found.setdefault(f"FreeU {strength}", how(freed, clip, vae)) == how(freed, clip, vae)
    for multiplier in (0.6, 0.7):
        (rescaled,) = RescaleCFG().patch(model, multiplier)
        found[f"RescaleCFG {multiplier}"] = how(rescaled, clip, vae)
    found["another object"] = how(model.clone(), clip.clone(), vae)
    with torch.no_grad():
        next(vae.first_stage_model.parameters()).add_(0.1)
    found["another VAE"] = how(model, clip, vae)
    return found


if __name__ == "__main__":
    from as_host import become_host

    _, _, weights = become_host()
    sys.stdout.write(json.dumps(told(Path(weights))))
