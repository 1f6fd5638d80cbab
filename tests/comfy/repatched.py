"""Give MODEL another kind of sampling, as the core's ModelSampling nodes do, and compute the loss a second way.

`python repatched.py COMFYUI PARENT WEIGHTS`: PARENT holds the pack as `continual_lora`; WEIGHTS of the embedded base.
Prints a JSON object, node and its choice -> what `loss_parity.py` says of it, or why it is refused.
"""

import json
import sys
from pathlib import Path
from typing import Any


def patched(model: Any) -> dict[str, Any]:
    """MODEL behind each node, by its choice."""
    from comfy_extras import nodes_model_advanced as core

    def discrete(sampling: str, zsnr: bool = False) -> Any:
        return core.ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]

    def continuous(sampling: str) -> Any:
        return core.ModelSamplingContinuousEDM().patch(model, sampling, 120.0, 0.002)[0]

    choices = ("eps", "v_prediction", "lcm", "x0", "img_to_img")
    return {
        "none": model,
        **{choice: discrete(choice) for choice in choices},
        "v_prediction, zsnr": discrete("v_prediction", zsnr=True),
        "flow": core.ModelSamplingSD3().patch(model, 2.0)[0],
        "continuous v_prediction": continuous("v_prediction"),
        "continuous eps": continuous("eps"),
    }


def main(weights: Path) -> dict[str, Any]:
    """See the module; the plain MODEL comes last again, as the host has one network for all of them."""
    from continual_lora.tests.comfy.loss_parity import compared
    from continual_lora.trainer.bases.comfyui.base import model_fingerprint
    from continual_lora.trainer.bases.comfyui.noising import changed_sampling
    from continual_lora.trainer.bases.comfyui.tiny import load_tiny_base
    from continual_lora.trainer.errors import ContinualLoraError

    model, clip, vae = load_tiny_base(folder=weights)
    found: dict[str, Any] = {}
    for name, own in [*patched(model).items(), ("none again", model)]:
        assert model_fingerprint(own) == model_fingerprint(model)  # what was taught can be put on any of them
        try:
            found[name] = compared(own, clip, vae) | {"sampling": changed_sampling(own)}
        except ContinualLoraError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    from as_host import become_host

    _, _, weights = become_host()
    sys.stdout.write("\n" + json.dumps(main(Path(weights))))
