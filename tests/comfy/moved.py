"""Use the host's models where it really moves them, as it does between a GPU and the CPU.

`python moved.py COMFYUI PARENT WEIGHTS`: PARENT holds the pack as `continual_lora`; WEIGHTS of the embedded base.
Prints a JSON object, what was done -> what it raised.

On a CPU `Module.to` makes no new tensors. Here it does, in the mode of the moment: that is what matters of a move.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "photo of a <my-fox> animal"


def unload(model: Any, clip: Any) -> None:
    """As the page's button does: outside of inference mode."""
    import torch
    from comfy import model_management

    model_management.load_models_gpu([model, clip.patcher])
    with torch.inference_mode(False):
        model_management.unload_all_models()
        try:
            model.model.diffusion_model.time_embed[0].weight.t()
        except RuntimeError:
            return
    raise AssertionError("The move left no trace: this script shows nothing.")


def refuse(model: Any) -> None:
    """A MODEL of Load LoRA (Bypass)."""
    from comfy.patcher_extension import PatcherInjection
    from continual_lora.trainer.bases.comfyui.base import model_fingerprint
    from continual_lora.trainer.errors import ContinualLoraError

    injected = model.clone()
    injected.set_injections("bypass_lora", [PatcherInjection(lambda _: None, lambda _: None)])
    try:
        model_fingerprint(injected)
    except ContinualLoraError as error:
        assert "bypass_lora" in str(error)
        return
    raise AssertionError("It is not refused.")


def in_training(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a node of ours makes it."""
    from continual_lora.nodes.host import training_mode

    def called() -> object:
        with training_mode():
            return call()

    return called


def main(weights: Path, root: Path) -> dict[str, str]:
    """Everything that may make the host move a model, one after another, on the same objects."""
    import torch
    from continual_lora.trainer.bases.comfyui.base import ComfyBase, model_fingerprint
    from continual_lora.trainer.bases.comfyui.live import live_draw
    from continual_lora.trainer.bases.comfyui.sampling import host_artist
    from continual_lora.trainer.bases.comfyui.tiny import load_tiny_base
    from continual_lora.trainer.concept import concept_from_batch
    from continual_lora.trainer.disk.sequence import ConceptSequence
    from continual_lora.trainer.settings import TrainSettings
    from continual_lora.trainer.teach import teach
    from endings import picture

    model, clip, vae = load_tiny_base(folder=weights)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    settings = TrainSettings(recipe="lora", steps=2, rank=2, sample_every=1)
    lines: list[Any] = []

    def train() -> None:
        base = ComfyBase(model, clip, vae)
        concept, line = concept_from_batch(images, token="my-fox", class_noun="animal"), len(lines)
        draw = live_draw(model, vae, base, settings)
        sequence = ConceptSequence.create(root / f"{line}", base.fingerprint)
        lines.append(teach(base, concept, settings, sequence, draw=draw))

    def draw() -> None:
        for _ in host_artist(model, clip, vae, 2, 3, 2, 2.0, "ddim", "normal", 64).draw(lines[-1], [PROMPT]):
            pass

    def use_the_vae() -> None:
        base = ComfyBase(model, clip, vae)
        latents = base.encode_images(images.movedim(-1, 1)).requires_grad_()
        base.decode_latents(latents.detach())
        (latents * latents).sum().backward()  # as a prediction of the network would be differentiated

    todo = {
        "train": in_training(train),
        "draw": in_training(draw),
        "use the VAE": in_training(use_the_vae),
        "train again": in_training(train),
        "unload models": lambda: unload(model, clip),
        "fingerprint of what was moved": in_training(lambda: model_fingerprint(model)),
        "train once more": in_training(train),
        "refuse what is injected": lambda: refuse(model),
        "ask the model": lambda: picture(model),
    }
    found = {}
    for name, call in todo.items():
        try:
            call()
            found[name] = ""
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    from as_host import become_host

    _, parent, weights = become_host()
    import torch
    from torch import nn

    plain = nn.Module.to
    nn.Module.to = lambda self, *args, **kwargs: plain(self, *args, **kwargs)._apply(torch.clone)
    with torch.inference_mode():  # as nodes run
        sys.stdout.write("\n" + json.dumps(main(Path(weights), Path(parent) / "sequences")))
