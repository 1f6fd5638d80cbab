"""Weights as files with scales have them, in every format that the host knows, and what a private view makes of them.

`python scaled.py COMFYUI PARENT CHECKPOINT`: PARENT holds the pack as `continual_lora`; CHECKPOINT is an SD3 of random
weights, whose keys and values are rows of a joint layer. Prints a JSON object, format -> findings, and a refusal.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import json
import sys
from pathlib import Path
from typing import Any

import torch
from as_host import become_host
from safetensors.torch import load_file
from torch import Tensor

UNET = "model.diffusion_model."
CPU = torch.device("cpu")


def inner(tensor: Tensor) -> list[Tensor]:
    """What a tensor's numbers lie in: itself, or the numbers and the scales that it is a shell around."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in inner(getattr(tensor, name))]


def in_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers in 8 bits, and the scale of the whole matrix."""
    scale = weight.float().abs().max() / 448
    return (weight.float() / scale).to(torch.float8_e4m3fn), scale


def scaled_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The older layout of scaled fp8, which newer hosts turn into their own: all matrices of the network."""
    made = {f"{UNET}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}  # two: multiply in full precision
    for name, value in state.items():
        if name.startswith(UNET) and value.ndim == 2 and name.endswith(".weight"):
            made[name], made[f"{name.removesuffix('weight')}scale_weight"] = in_fp8(value)
        else:
            made[name] = value
    return made


def unscaled(weight: Tensor) -> Tensor:
    """What `in_fp8` makes of it, in fp32."""
    numbers, scale = in_fp8(weight)
    return numbers.float() * scale


def rounded_loras(name: str) -> str:
    """When the host rounds what a LoRA makes of weights, at random, to their 8 bits: "never", "loaded" or "always"."""
    import comfy.ops

    if not name.startswith(("fp8", "scaled")):
        return "never"
    return "always" if name.startswith("scaled") and hasattr(comfy.ops, "scaled_fp8_ops") else "loaded"  # 0.3.75


def in_format(state: dict[str, Tensor], name: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """A network's state in one of the host's formats, the same unpacked by the host, and the file's metadata."""
    from comfy import quant_ops

    made, plain, layers = {}, {}, {}
    for key, value in state.items():
        if value.ndim != 2 or "_block." not in key or value.shape[1] % (256 if "convrot" in name else 32):
            made[key] = plain[key] = value.float()
            continue
        layout = quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
        scale = {} if "float8" not in name else {"scale": value.float().abs().max() / 448}
        weight = quant_ops.QuantizedTensor.from_float(value.float(), layout, **scale)
        plain[key] = weight.dequantize()
        parts = weight.state_dict(key) if hasattr(weight, "state_dict") else in_fp8_parts(weight, key)
        made |= parts
        layer = key.removesuffix(".weight")
        layers[layer] = {"format": name}
        if "float8" in name:
            made[f"{layer}.input_scale"] = torch.tensor(0.05)
    return made, plain, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


def in_fp8_parts(weight: Any, key: str) -> dict[str, Tensor]:
    """Of an older host, which knows fp8 alone."""
    return {key: weight._qdata, f"{key}_scale": weight._layout_params["scale"]}


def gradients(model: Any, autocast: bool) -> tuple[dict[str, Tensor], int]:
    """Of a random square of the answer, by a LoRA of random numbers on a private view, and the bytes that are kept."""
    from continual_lora.trainer.adapters.layers import joint_attention_layers, split_joint_attention
    from continual_lora.trainer.adapters.lora import LoraAdapter
    from continual_lora.trainer.bases.comfyui.private import private_view

    unet = model.model.diffusion_model
    view = split_joint_attention(private_view(unet, CPU, joint_attention_layers(unet)))
    rng = torch.Generator().manual_seed(1)
    adapter = LoraAdapter(view, 2, 2.0, rng)
    for parameter in adapter.parameters.values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    x, context = torch.randn(2, 16, 8, 8, generator=rng), torch.randn(2, 5, 4096, generator=rng)
    y, t = torch.randn(2, 2048, generator=rng), torch.tensor([0.2, 0.7])
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.update({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in inner(tensor)})
        return tensor

    own = {part.untyped_storage().data_ptr() for tensor in view.parameters() for part in inner(tensor)}
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        error = view(x, t, context=context, y=y).float().square().mean()
    error.backward()
    found = {name: parameter.grad for name, parameter in adapter.parameters.items()}
    return found, sum(size for place, size in kept.items() if place not in own)


def bits(model: Any) -> bytes:
    """Of all parameters, in and around their shells."""
    parts = [part for tensor in model.model.diffusion_model.parameters() for part in inner(tensor)]
    return b"".join(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for part in parts)


def refusal(state: dict[str, Tensor]) -> str:
    """Of a file in the older layout, which does not ask for full precision, on a GPU that multiplies in fp8."""
    import comfy.sd
    from comfy import model_management
    from continual_lora.trainer.bases.comfyui.base import model_fingerprint
    from continual_lora.trainer.errors import ContinualLoraError

    made = scaled_checkpoint({f"{UNET}{name}": value for name, value in state.items()})
    made[f"{UNET}scaled_fp8"] = made[f"{UNET}scaled_fp8"][:1]
    own, model_management.supports_fp8_compute = model_management.supports_fp8_compute, lambda *_: True
    try:
        with torch.inference_mode():
            model_fingerprint(comfy.sd.load_diffusion_model_state_dict(made))
    except ContinualLoraError as error:
        return str(error)
    finally:
        model_management.supports_fp8_compute = own
    return ""


@torch.inference_mode(False)
def compared(model: Any, reference: Any, layers: list[Any]) -> dict[str, Any]:
    """The findings of one format against the same weights in fp32; `layers` have the format."""
    before, differences, kept = bits(model), [], []
    for autocast in (False, True):
        (own, own_kept), (expected, plain_kept) = gradients(model, autocast), gradients(reference, autocast)
        differences.append(max(float((own[n] - g).abs().max() / g.abs().max()) for n, g in expected.items()))
        kept.append([own_kept, plain_kept])
    return {"layers": len(layers), "differences": differences, "kept": kept, "unchanged": bits(model) == before}


def fast(state: dict[str, Tensor]) -> dict[str, Any]:
    """Load Diffusion Model's fp8_e4m3fn_fast, on a GPU that multiplies in fp8: no scales, a rounded input."""
    import comfy.ops
    import comfy.sd
    from comfy import model_management

    e4m3 = torch.float8_e4m3fn
    own, model_management.supports_fp8_compute = model_management.supports_fp8_compute, lambda *_: True
    try:
        with torch.inference_mode():
            options = {"dtype": e4m3, "fp8_optimizations": True}
            model = comfy.sd.load_diffusion_model_state_dict(dict(state), model_options=options)
            plain = {name: value.to(e4m3).float() for name, value in state.items()}
            reference = comfy.sd.load_diffusion_model_state_dict(plain, model_options={"dtype": torch.float32})
    finally:
        model_management.supports_fp8_compute = own
    layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, comfy.ops.fp8_ops.Linear)]
    return compared(model, reference, [layer for layer in layers if layer.weight.dtype == e4m3])


def main(checkpoint: Path) -> dict[str, Any]:
    """Format -> findings, and "refusal"."""
    import comfy.sd
    from comfy import quant_ops

    state = {n.removeprefix(UNET): v for n, v in load_file(checkpoint).items() if n.startswith(UNET)}
    found: dict[str, Any] = {"refusal": refusal(state), "fast": fast(state)}
    for name in quant_ops.QUANT_ALGOS:
        made, plain, metadata = in_format(state, name)
        with torch.inference_mode():  # as a loader node runs
            model = comfy.sd.load_diffusion_model_state_dict(made, metadata=metadata)
            reference = comfy.sd.load_diffusion_model_state_dict(plain, model_options={"dtype": torch.float32})
        layers = [m for m in model.model.diffusion_model.modules() if hasattr(m, "_full_precision_mm")]
        for layer in layers:
            layer._full_precision_mm = False  # as on a GPU that multiplies in these formats
        packed = [layer for layer in layers if isinstance(layer.weight, quant_ops.QuantizedTensor)]
        found[name] = compared(model, reference, packed)
    return found


if __name__ == "__main__":
    _, _, checkpoint = map(Path, become_host()[:3])
    sys.stdout.write(json.dumps(main(checkpoint)))
