"""Compare the host's objects on the embedded base with our own modules; run as a script outside the test process.

`python tiny_parity.py COMFYUI PARENT WEIGHTS`: PARENT holds the pack as `continual_lora`, so that the pack's root is
never on the path beside ComfyUI's own `nodes`. Prints a JSON object: what was compared -> the largest
difference, and where answers of the autoencoder are.
"""

import json
import sys
from pathlib import Path

PROMPTS = ["", "photo of a cat", "Apple, xyzzyx ROCKET!", "one two three four five six seven eight nine ten " * 2]


def away_from_its_layers(folder: Path) -> list[str]:
    """Where the autoencoder's answers are, if the host has left its layers on the CPU (--novram).

    The other device is torch's "meta", which has no numbers.
    """
    import torch
    from continual_lora.trainer.bases.comfyui.tiny import load_tiny_base

    _, _, vae = load_tiny_base(folder=folder)
    away, autoencoder = torch.device("meta"), vae.first_stage_model
    vae.patcher.load_device = away
    vae.patcher.load(away, lowvram_model_memory=0.1)
    assert all(value.device.type == "cpu" for value in autoencoder.parameters())
    latents = autoencoder.encode(torch.zeros(1, 3, 64, 64, device=away))
    return [value.device.type for value in (latents, autoencoder.decode(latents))]


def differences(folder: Path) -> dict[str, float]:
    """Largest absolute difference of each part, and of the noise schedule."""
    import torch
    from continual_lora.trainer.bases.comfyui.tiny import load_tiny_base
    from continual_lora.trainer.bases.tiny.base import scaled_linear_alphas_cumprod
    from continual_lora.trainer.bases.tiny.text import END, START, frame
    from continual_lora.trainer.bases.tiny.weights import load_weights

    state = torch.get_rng_state()
    ours = load_weights(folder)
    model, clip, vae = load_tiny_base(folder=folder)
    found = {"random state": float((torch.get_rng_state() - state).abs().max())}

    latents, timesteps, context = torch.randn(2, 8, 8, 8), torch.tensor([3.0, 777.0]), torch.randn(2, 24, 128)
    theirs = model.model.diffusion_model(latents, timesteps, context=context)
    found["unet"] = float((theirs - ours.unet(latents, timesteps, context)).abs().max())
    signal = 1 / (1 + model.model.model_sampling.sigmas**2)
    found["schedule"] = float((signal - scaled_linear_alphas_cumprod()).abs().max())

    ids = ours.tokenizer.ids
    for prompt in PROMPTS:
        framed = frame(ours.tokenizer.encode(prompt), ids[START], ids[END])
        tokens = clip.tokenize(prompt)
        assert [token for token, _ in tokens["l"][0]] == framed, prompt
        encoded = ours.text(ours.text.word_vectors[torch.tensor([framed])])
        theirs = clip.encode_from_tokens(tokens)
        found[f"text {prompt!r}"] = float((theirs - encoded).abs().max())

    images = torch.rand(2, 64, 64, 3)
    encoded = ours.autoencoder.encode(images.movedim(-1, 1) * 2 - 1)
    found["encode"] = float((vae.encode(images) - encoded).abs().max())
    decoded = (ours.autoencoder.decode(latents) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    found["decode"] = float((vae.decode(latents) - decoded).abs().max())
    return found


if __name__ == "__main__":
    from as_host import become_host

    _, _, weights = become_host()
    import torch

    with torch.inference_mode():  # as nodes run
        found = {"differences": differences(Path(weights)), "devices": away_from_its_layers(Path(weights))}
        sys.stdout.write(json.dumps(found))
