"""Train in every way that the host can hold a model, and look at what is left behind.

`python living.py COMFYUI PARENT CHECKPOINT`: PARENT holds the pack as `continual_lora`; CHECKPOINT is a shallow SD1.5.
Prints a JSON object, way -> what was found.

On a CPU --lowvram and --novram have no effect: the host loads everything. So the amount that it may load is set here,
in the host's own call, and it takes the path that it takes on a GPU: layers that do not fit keep their weights as they
are, cast them for every pass, and have a LoRA put on them lazily.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PROMPT = "photo of a <my-fox> animal"
UNET = "model.diffusion_model."
ALL, HALF, NONE = 1.0, 0.5, 0.0
# What the host writes on its layers when it loads a model, and leaves there.
BOOKS = {"weight_function", "bias_function", "comfy_cast_weights"}


@contextmanager
def host_loads_at_most(share: float) -> Iterator[None]:
    """The host has room for this share of a U-Net's weights."""
    from comfy import model_management
    from continual_lora.trainer.bases.comfyui.memory import host_mode

    plain = model_management.LoadedModel.model_use_more_vram

    def limited(entry: Any, extra_memory: float, force_patch_weights: bool = False) -> Any:
        patcher = entry.model
        if share < ALL and hasattr(patcher.model, "diffusion_model"):
            extra_memory = share * patcher.model_size() + 0.1 - patcher.loaded_size()
        return plain(entry, extra_memory, force_patch_weights)

    model_management.LoadedModel.model_use_more_vram = limited
    try:
        yield
    finally:
        model_management.LoadedModel.model_use_more_vram = plain
        with host_mode():
            model_management.unload_all_models()


def user_lora(model: Any) -> Any:
    """MODEL behind Load LoRA: keys and values of the cross-attention, other layers, and a bias."""
    import comfy.sd

    rng = torch.Generator().manual_seed(5)
    factors = {}
    for name, shape in {key: tuple(value.shape) for key, value in layers_of(model).items()}.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        factors[f"{key}.lora_down.weight"] = 0.2 * torch.randn(2, shape[1], generator=rng)
        factors[f"{key}.lora_up.weight"] = 0.2 * torch.randn(shape[0], 2, generator=rng)
        factors[f"{key}.alpha"] = torch.tensor(2.0)
    bias = "diffusion_model.out.2.bias"
    factors[f"{bias.removesuffix('.bias')}.diff_b"] = 0.1 * torch.ones(4)
    lent = comfy.sd.load_lora_for_models(model, None, factors, 0.7, 0.0)[0]
    assert bias in lent.patches and len(lent.patches) == len(factors) // 3 + 1, sorted(lent.patches)
    return lent


def layers_of(model: Any) -> dict[str, Any]:
    modules = model.model.diffusion_model.named_modules()
    wanted = ("attn2.to_k", "attn2.to_v", "attn1.to_q", "ff.net.2")
    return {name: module.weight for name, module in modules if name.endswith(wanted)}


def state_of(*patchers: Any) -> str:
    """A digest of all bits, flags, hooks and patches of what the user has on the sockets."""
    from scaled import inner

    total = hashlib.sha256()
    for patcher in patchers:
        for name, module in patcher.model.named_modules():
            hooks = [len(value) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
            functions = [len(getattr(module, key, ())) for key in ("weight_function", "bias_function")]
            facts = (name, type(module).__name__, module.training, hooks, functions, sorted(set(vars(module)) - BOOKS))
            total.update(repr(facts).encode())
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                total.update(f"{key} {tensor.requires_grad} {tensor.grad is None}".encode())
                for part in inner(tensor):
                    plain = part.detach().as_subclass(torch.Tensor).contiguous()
                    total.update(f"{type(tensor).__name__} {part.is_inference()}".encode())
                    total.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
        total.update(repr((sorted(patcher.patches), patcher.patches_uuid, sorted(patcher.backup))).encode())
    return total.hexdigest()


def fixed_error(base: Any, tokens: Any) -> torch.Tensor:
    """The denoising error of one draw."""
    from continual_lora.trainer.losses.denoising import NoisedBatch

    rng = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 4, 8, 8, generator=rng)
    return NoisedBatch(base, x_0, torch.tensor([200, 700]), noise).error(base.encode_prompt(PROMPT, tokens)).mean()


def gradients(model: Any, clip: Any, vae: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Of the error by a LoRA of random numbers and by the token, and the bytes that autograd keeps for them."""
    from continual_lora.trainer.adapters.lora import LoraAdapter
    from continual_lora.trainer.bases.comfyui.base import ComfyBase
    from scaled import inner

    base = ComfyBase(model, clip, vae)
    rng = torch.Generator().manual_seed(1)
    adapter = LoraAdapter(base.unet, 2, 2.0, rng)
    for parameter in adapter.parameters.values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    token = {name: value.clone().requires_grad_() for name, value in base.word_vectors("animal").items()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    parameters = (*base.unet.parameters(), *base._text.parameters())
    own = {part.untyped_storage().data_ptr() for tensor in parameters for part in inner(tensor)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        error = fixed_error(base, {"my-fox": token})
    error.backward()
    found = {**{name: p.grad for name, p in adapter.parameters.items()}, **{n: t.grad for n, t in token.items()}}
    return found, sum(size for place, size in kept.items() if place not in own)


def taught(model: Any, clip: Any, vae: Any, root: Path) -> dict[str, Any]:
    """Teach, then put the file on MODEL by the core's own code."""
    import comfy.sd
    from comfy import model_management
    from continual_lora.trainer.bases.comfyui.base import ComfyBase
    from continual_lora.trainer.concept import concept_from_batch
    from continual_lora.trainer.disk.sequence import ConceptSequence
    from continual_lora.trainer.settings import TrainSettings
    from continual_lora.trainer.teach import teach

    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    concept = concept_from_batch(images, token="my-fox", class_noun="animal")
    base = ComfyBase(model, clip, vae)
    with torch.no_grad():
        before = fixed_error(base, {"my-fox": base.word_vectors("animal")})
    few = {"steps": 4, "rank": 2, "learning_rate": 1e-2, "resolution": 64, "batch_size": 2}
    line = ConceptSequence.create(root, base.fingerprint)
    line = teach(base, concept, TrainSettings(recipe="lora", **few), line)
    rng = torch.Generator().manual_seed(2)
    x, context = torch.randn(1, 4, 8, 8, generator=rng), torch.randn(1, 77, 768, generator=rng)
    t = torch.tensor([500.0])
    with torch.no_grad():
        after = fixed_error(base, line.tokens())
        ours = base.unet(x, t, context=context)
    lora = line.lora(line.tasks[-1])
    with torch.inference_mode():
        outputs = []
        for patcher in (model, comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]):
            model_management.load_models_gpu([patcher])
            outputs.append(patcher.model.diffusion_model(x, t, context=context))
    plain, theirs = outputs
    return {
        "error": [float(before), float(after)],
        "moved": float((theirs - plain).abs().max()),
        "core LoRA against ours": float((theirs - ours).abs().max()),
    }


def findings(model: Any, clip: Any, vae: Any, reference: dict[str, torch.Tensor], root: Path) -> dict[str, Any]:
    """All that is found out about one MODEL, with more and less of it loaded; taught once, with nothing loaded."""
    from comfy import model_management
    from continual_lora.trainer.bases.comfyui.base import model_fingerprint
    from continual_lora.trainer.bases.comfyui.memory import host_mode, load

    load([model, clip.patcher, vae.patcher])  # once, for the flags that the host changes itself
    with host_mode():
        model_management.unload_all_models()
    found: dict[str, Any] = {"fingerprints": [model_fingerprint(model)], "loaded": [], "gradients": [], "kept": []}
    state = state_of(model, clip.patcher, vae.patcher)
    with torch.inference_mode(False):
        for share in (ALL, HALF, NONE):
            with host_loads_at_most(share):
                own, kept = gradients(model, clip, vae)
                found["loaded"].append(model.loaded_size() / model.model_size())
                found["fingerprints"].append(model_fingerprint(model))
                differences = [(own[name] - g).abs().max() / g.abs().max() for name, g in reference.items()]
                found["gradients"].append(float(torch.stack(differences).max()))
                found["kept"].append(kept)
                if share == NONE:
                    found |= taught(model, clip, vae, root)
    found["unchanged"] = state_of(model, clip.patcher, vae.patcher) == state
    return found


def with_weights(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """An ordinary MODEL in fp32 of these weights of a U-Net."""
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(weights, model_options={"dtype": torch.float32})


def left_in_fp32(model: Any, dtype: torch.dtype) -> str:
    """The fingerprint where dynamic VRAM leaves the weights as the file has them, to be cast when they are brought."""
    from continual_lora.trainer.bases.comfyui.base import model_fingerprint

    for layer in model.model.diffusion_model.modules():
        layer.weight_comfy_model_dtype = dtype
    return str(model_fingerprint(model))


def main(comfyui: Path, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Way -> findings."""
    from continual_lora.trainer.bases.comfyui.checkpoint import load_checkpoint

    with torch.inference_mode():  # as a loader node runs
        model, clip, vae = load_checkpoint(comfyui, checkpoint)
    from packed import load_packed, pack, unpack
    from scaled import rounded_loras, scaled_checkpoint, unscaled

    weights = {n.removeprefix(UNET): v for n, v in load_file(checkpoint).items() if n.startswith(UNET)}
    fp8 = {n: v.to(torch.float8_e4m3fn) for n, v in weights.items()}
    rounded = {n: unpack(pack(v)) if v.ndim == 2 else v.float() for n, v in weights.items()}
    scaled = {n: unscaled(v) if v.ndim == 2 else v.float() for n, v in weights.items()}
    save_file(scaled_checkpoint(load_file(checkpoint)), folder / "scaled.safetensors")
    with torch.inference_mode():
        in_fp8 = load_checkpoint(comfyui, checkpoint, torch.float8_e4m3fn)[0]
        as_packed = load_packed(weights)
        as_scaled = load_checkpoint(comfyui, folder / "scaled.safetensors")[0]
        of_fp8 = with_weights(model, {n: v.float() for n, v in fp8.items()})
        of_packed = with_weights(model, rounded)
        of_scaled = with_weights(model, scaled)
        ways = {"plain": model, "fp8": in_fp8, "packed": as_packed, "scaled": as_scaled}
        ways |= {f"{name} with LoRA": user_lora(patcher) for name, patcher in ways.items()}
        references = {"plain": model, "fp8": of_fp8, "packed": of_packed, "scaled": of_scaled}
        references |= {f"{name} with LoRA": user_lora(patcher) for name, patcher in references.items()}
    assert not getattr(as_packed, "cached_patcher_init", None)
    found: dict[str, Any] = {}
    for name, patcher in ways.items():
        with torch.inference_mode(False):
            reference, _ = gradients(references[name], clip, vae)
        found[name] = findings(patcher, clip, vae, reference, folder / name)
        found[name]["LoRAs rounded"] = rounded_loras(name)
    found["fp8"]["fingerprints"].append(left_in_fp32(with_weights(model, weights), torch.float8_e4m3fn))
    return found


if __name__ == "__main__":
    comfyui, parent, checkpoint = map(Path, sys.argv[1:4])
    sys.path[0] = str(parent)  # instead of this folder, of which nothing may hide ComfyUI's
    sys.path.append(str(Path(__file__).parent))
    del sys.argv[1:]
    sys.stdout.write(json.dumps(main(comfyui, checkpoint, parent)))
