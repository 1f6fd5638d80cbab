"""What a LoRA file says of itself, in the words that other tools read (`ss_*` of kohya, `modelspec.*`)."""

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from ..denoiser import Denoiser
from .manifest import TaskRecord


def lora_metadata(
    denoiser: Denoiser, task: TaskRecord, earlier_tokens: list[str], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Metadata of a task's LoRA; no date in it, so that the same training gives the same bytes."""
    tokens = [f"<{name}>" for name in (*earlier_tokens, task.token)]
    settings = task.settings
    resolution = settings["resolution"] or denoiser.resolution
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(task.rank),
        "ss_network_alpha": str(task.alpha),
        "ss_base_model_version": denoiser.architecture,
        "ss_learning_rate": str(settings["learning_rate"]),
        "ss_steps": str(settings["steps"]),
        "ss_batch_size_per_device": str(settings["batch_size"]),
        "ss_seed": str(settings["seed"]),
        "ss_resolution": f"({resolution}, {resolution})",
        **({"ss_enable_bucket": "True"} if settings.get("aspect_buckets") else {}),
        "ss_lr_scheduler": settings["schedule"],
        "ss_training_comment": f"Continual LoRA, recipe {task.recipe}, concept {task.index}",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{denoiser.architecture}/lora",
        "modelspec.title": f"{' '.join(tokens)} (Continual LoRA)",
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": "epsilon" if denoiser.parameterization == "eps" else denoiser.parameterization,
        "modelspec.trigger_phrase": ", ".join(tokens),
        "modelspec.hash_sha256": "0x" + tensor_hash(tensors),
        "continual_lora.tokens": json.dumps(tokens),
        "continual_lora.base": denoiser.fingerprint,
        "continual_lora.task": task.key,
    }


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 over the bytes of the tensors in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(tensors[name].contiguous().numpy().tobytes())
    return total.hexdigest()
