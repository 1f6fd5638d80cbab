"""Sanity check 2: how the Fisher of the denoising loss and the one that knows the classes differ, layer by layer.

Both from the same draws of (image, t, noise, prompts): the sorted diagonal, and the eigenvalues of the whole empirical
Fisher matrix F = 1/N sum g g^T, which are those of the N x N Gram matrix of the per-sample gradients over N.
Source: Jha et al., arXiv 2410.00700 (talk's sanity check 2).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..apply import attach
from ..denoiser import Denoiser, encode_one_by_one
from ..disk.sequence import ConceptSequence
from ..methods.ewc import EWC
from ..settings import TrainSettings
from ..task import TrainedTask
from ..trained import trained_task
from ..training.checkpointing import checkpoint_blocks
from ..training.precision import FORMATS, in_format, loss_scaler


@dataclass(frozen=True)
class Spectrum:
    """Of one layer and one objective.

    Attributes:
        diagonal: of the Fisher, sorted, the largest first, [P].
        eigenvalues: of the Fisher, the largest first, [N]; the others of the P are 0.
    """

    diagonal: Tensor
    eigenvalues: Tensor


def spectrum(gradients: Tensor) -> Spectrum:
    """From the per-sample gradients of a layer.

    Args:
        gradients: [N, P], one sample's gradient a row.

    Returns:
        In float64; the sums of both are equal, they are the trace.
    """
    g = gradients.double()
    eigenvalues = torch.linalg.eigvalsh(g @ g.T / len(g)).flip(0).clamp_min(0)
    return Spectrum(g.square().mean(0).sort(descending=True).values, eigenvalues)


def chosen_layers(names: list[str]) -> list[str]:
    """The first, the middle and the last."""
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def fisher_spectrum(
    task: TrainedTask, settings: TrainSettings, draws: int, on_draws: Callable[[int], None] = lambda done: None
) -> dict[str, dict[str, Spectrum]]:
    """Objective ("L_den", "L_den + CE") -> layer -> its spectrum; empty if the adapter has no parameters to weigh.

    Args:
        task: whose Fisher, its adapter live on the denoiser.
        settings: `num_prompts`, `temperature`, `batch_size` and `low_memory` take effect.
        draws: N, samples.
        on_draws: told how many of the 2 N are done; may raise to stop.
    """
    if not task.adapter.parameters:
        return {}
    plain = _spectra(EWC(settings, classifier=False), task, draws, on_draws)
    with_classes = _spectra(EWC(settings, classifier=True), task, draws, lambda done: on_draws(draws + done))
    return {"L_den": plain, "L_den + CE": with_classes}


def restored_task(denoiser: Denoiser, line: ConceptSequence, batch_size: int = 1) -> TrainedTask:
    """The newest task of a line, as its training left it; alpha masks are not kept on disk and do not count.

    Args:
        denoiser: a fresh view; it carries the adapter afterwards.
        line: at least one task.
        batch_size: images of the passes to come; blocks are checkpointed in them if they were in the training.
    """
    task = line.tasks[-1]
    latents = encode_one_by_one(denoiser, line.images(task))
    checkpointed = task.settings.get("gradient_checkpointing") is True
    denoiser.make_room((batch_size, *latents.shape[1:]), checkpointed)
    if checkpointed:
        checkpoint_blocks(denoiser.unet)
    adapter, tokens = attach(denoiser, line)
    stored = task.settings.get("mixed_precision")  # an older version wrote none; the manifest is not held to it
    mixed_precision = stored if isinstance(stored, str) and stored in FORMATS else "auto"
    return trained_task(
        in_format(denoiser, mixed_precision),
        adapter,
        tokens,
        line.up_to(task.index - 1),
        task,
        latents,
        scaler=loss_scaler(denoiser, mixed_precision),
    )


def _spectra(ewc: EWC, task: TrainedTask, draws: int, on_draws: Callable[[int], None]) -> dict[str, Spectrum]:
    samples: dict[str, list[Tensor]] = {name: [] for name in chosen_layers(task.adapter.names)}
    done = 0
    for gradients in ewc.gradients(task, draws):
        for layer, collected in samples.items():
            collected.append(_of_layer(gradients, layer))
        done += len(collected[-1])
        on_draws(done)
    return {layer: spectrum(torch.cat(collected)) for layer, collected in samples.items()}


def _of_layer(gradients: Mapping[str, Tensor], layer: str) -> Tensor:
    """All parameters of a layer's adapter side by side, [B, ...] each to [B, P]."""
    own = [g.flatten(1) for name, g in gradients.items() if name == layer or name.startswith(f"{layer}.")]
    return torch.cat(own, dim=1).cpu()
