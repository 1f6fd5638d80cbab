"""Compare the host's objects on the embedded base with our own modules; run as a script outside the test process.

`python tiny_parity.py COMFYUI PARENT WEIGHTS`: PARENT holds the pack as `continual_lora`, so that the pack's root is
never on the path beside ComfyUI's own `nodes`. Prints a JSON object: what was compared -> the largest difference.
"""

import json
import sys
from pathlib import Path

PROMPTS = ["", "photo of a cat", "Apple, xyzzyx ROCKET!", "one two three four five six seven eight nine ten " * 2]


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
        sys.stdout.write(json.dumps(differences(Path(weights))))
