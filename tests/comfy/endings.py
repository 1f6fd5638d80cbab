"""Let a training end in each way, by the node itself under inference mode, and look at what is left behind.

`python endings.py COMFYUI PARENT WEIGHTS`: PARENT holds the pack as `continual_lora`; WEIGHTS of the embedded base.
Prints a JSON object, ending -> what was found.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import gc
import json
import sys
import weakref
from pathlib import Path
from typing import Any

STOP_AT = 5  # passes of the U-Net


def watched(plain: type, ending: str, alive: list[Any]) -> type:
    """ComfyBase whose training ends in a pass, in the way that is named."""
    import torch
    from comfy import model_management

    class Watched(plain):  # type: ignore[misc]
        passes = 0

        def _take_views(self, needed: float) -> None:
            super()._take_views(needed)
            alive.extend(weakref.ref(view) for view in (self.unet, self._text))

        def predict(self, *args: Any) -> Any:
            self.passes += 1
            if self.passes == STOP_AT:
                if ending == "error":
                    raise RuntimeError("a layer failed")
                if ending == "memory":
                    raise torch.OutOfMemoryError("the device is full")
                if ending == "interrupt":  # the next of the host's operations raises, inside the pass
                    model_management.interrupt_current_processing()
            return super().predict(*args)

    return Watched


def picture(model: Any) -> Any:
    """What the user's MODEL answers, by the host's own call."""
    import torch
    from comfy import model_management

    rng = torch.Generator().manual_seed(3)
    x, context = torch.randn(1, 8, 8, 8, generator=rng), torch.randn(1, 24, 128, generator=rng)
    model_management.load_models_gpu([model])
    return model.model.apply_model(x, torch.tensor([2.0]), c_crossattn=context)


def ended(ending: str, weights: Path) -> dict[str, Any]:
    """Train through the node; what was there before and is there after."""
    import torch
    from comfy import model_management
    from continual_lora.nodes import train
    from continual_lora.trainer.bases.comfyui.tiny import load_tiny_base
    from continual_lora.trainer.concept import concept_from_batch
    from living import state_of

    model, clip, vae = load_tiny_base(folder=weights)
    lent = train.apply_lora(model, {}, 1.0)  # a clone, as a loader node's output is shared
    model_management.load_models_gpu([model, clip.patcher, vae.patcher])  # once, for what the host then writes on them
    model_management.unload_all_models()
    before, answer = state_of(model, clip.patcher, vae.patcher), picture(lent)
    loaded = len(model_management.current_loaded_models)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    concept = concept_from_batch(images, token="my-fox", class_noun="animal")
    alive: list[Any] = []
    plain, raised, steps = train.ComfyBase, "", [0]
    progress = train.Progress.__call__

    def counted(self: Any, *report: Any) -> None:
        steps[0] += 1
        progress(self, *report)

    train.ComfyBase, train.Progress.__call__ = watched(plain, ending, alive), counted
    try:
        few = {"steps": 3, "rank": 2, "learning_rate": 1e-3, "penalty_weight": 1.0, "seed": 0, "recipe": "lora_ewc_dc"}
        options = {"batch_size": 1, "fisher_draws": 3}
        train.TrainContinualLora.execute(lent, clip, vae, concept, f"ended by {ending}", options=options, **few)
    except BaseException as error:
        raised = type(error).__name__
    finally:
        train.ComfyBase, train.Progress.__call__ = plain, progress
        model_management.interrupt_current_processing(False)
    after = len(model_management.current_loaded_models)
    modes = {"gradients": torch.is_grad_enabled(), "inference": torch.is_inference_mode_enabled()}
    gc.collect()
    same = torch.equal(picture(lent), answer)
    model_management.unload_all_models()
    return {
        "raised": raised,
        "steps": steps[0],
        "loaded before": loaded,
        "loaded": after,
        "views": len(alive),
        "views alive": sum(view() is not None for view in alive),
        "torch": modes | {"autocast": torch.is_autocast_enabled("cpu")},
        "picture": "the same" if same else "another",
        "state": "the same" if state_of(model, clip.patcher, vae.patcher) == before else "another",
    }


if __name__ == "__main__":
    from as_host import become_host

    _, parent, weights = become_host()
    import folder_paths
    import torch

    # Not the parent itself, where the pack has the name of our folder in it.
    folder_paths.set_output_directory(str(Path(parent) / "output"))
    with torch.inference_mode():  # as nodes run
        kinds = ("success", "error", "interrupt", "memory")
        sys.stdout.write("\n" + json.dumps({kind: ended(kind, Path(weights)) for kind in kinds}))
