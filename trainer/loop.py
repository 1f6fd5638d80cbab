"""The training loop: one page, a generator."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from .adapters.adapter import Adapter
from .denoiser import Conditioning, Denoiser, TokenVectors
from .errors import ContinualLoraError
from .losses.denoising import draw_batches
from .losses.min_snr import mean_error
from .methods.method import Method
from .optimizers import build_optimizer, load_optimizer_state, optimizer_state, set_training
from .prior import Prior
from .schedule import schedule_factor
from .settings import TrainSettings
from .task import StepRecord, step_rng


class TrainState:
    """All that changes while one concept is taught; saved and restored to the bit.

    Args:
        adapter: live on the view.
        token: where the new token's vectors start.
        settings: optimizer, learning rates and weight decay.
    """

    def __init__(self, adapter: Adapter, token: TokenVectors, settings: TrainSettings) -> None:
        self.adapter = adapter
        self.token = {name: nn.Parameter(value.detach().clone().float()) for name, value in token.items()}
        self.step = 0
        self.whole = True  # False while a step is applied: an interrupt may come in the middle of it
        self.losses: list[float] = []
        self.penalties: list[float] = []
        self.norms: list[float] = []
        self.parameters: dict[str, nn.Parameter] = {
            **adapter.parameters,
            **{f"token.{name}": value for name, value in self.token.items()},
        }
        groups = [
            {
                "params": list(adapter.parameters.values()),
                "lr": settings.learning_rate,
                "weight_decay": settings.weight_decay,
            },
            {"params": list(self.token.values()), "lr": settings.token_learning_rate, "weight_decay": 0.0},
        ]
        self.optimizer = build_optimizer(settings.optimizer, groups)
        self.peaks = [settings.learning_rate, settings.token_learning_rate]
        for value in self.token.values():
            value.requires_grad_(settings.token_learning_rate > 0)

    def frozen_token(self) -> TokenVectors:
        """The token's vectors as they are now, copies without a graph."""
        return {name: value.detach().clone() for name, value in self.token.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters, optimizer, logs and the step; the generator is a function of the seed and the step."""
        tensors = {f"parameter.{name}": value.detach().cpu() for name, value in self.parameters.items()}
        tensors |= optimizer_state(self.optimizer, self.parameters)
        tensors["step"] = torch.tensor(self.step)
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["penalties"] = torch.tensor(self.penalties, dtype=torch.float64)
        tensors["norms"] = torch.tensor(self.norms, dtype=torch.float64)
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.step = int(tensors["step"])
        self.losses, self.penalties = tensors["losses"].tolist(), tensors["penalties"].tolist()
        self.norms = tensors["norms"].tolist()
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"parameter.{name}"])
        load_optimizer_state(self.optimizer, self.parameters, tensors)


def train_concept(
    denoiser: Denoiser,
    latents: Tensor,
    masks: Tensor | None,
    encode: Callable[[Tensor, torch.Generator], Conditioning],
    state: TrainState,
    methods: Iterable[Method],
    settings: TrainSettings,
    seed: str,
    prior: Prior | None = None,
) -> Iterator[StepRecord]:
    """Train until `settings.steps`; `state.whole` says whether an exception came between two steps or inside one.

    Args:
        denoiser: the view that carries the adapter.
        latents: x_0, [N, C, h, w].
        masks: [N, 1, h, w] in 0..1, or None.
        encode: indices of images [B] and what draws at random of their captions -> prompts, with the token's graph.
        state: goes on from its step.
        methods: add their penalties.
        settings: steps, batch size, schedule, clipping.
        seed: of the task, "<seed>/<index>".
        prior: pictures of the class noun; their error on as many as the batch is added to the loss.
    """
    bf16 = uses_bf16(settings.mixed_precision, denoiser.device)
    set_training(state.optimizer, True)
    while state.step < settings.steps:
        rng, captions_rng = step_rng(seed, "train", state.step), step_rng(seed, "captions", state.step)
        parts = settings.gradient_accumulation
        indices = torch.randint(len(latents), (parts * settings.batch_size,), generator=rng).chunk(parts)
        added = total_penalty(methods, state.adapter)
        penalty = latents.new_zeros(()) if added is None else added
        state.optimizer.zero_grad(set_to_none=True)
        loss = latents.new_zeros(())
        for part, batch in zip(indices, draw_batches(denoiser, latents, masks, indices, rng), strict=True):
            with torch.autocast(denoiser.device.type, torch.bfloat16, enabled=bf16):
                error = mean_error(batch, encode(part, captions_rng), settings.min_snr_gamma)
                if prior is not None:
                    error = error + prior.error(denoiser, settings.batch_size, rng, settings.min_snr_gamma)
            share = error / parts
            (share + penalty if part is indices[0] else share).backward()
            loss += share.detach()
        if not torch.isfinite(loss + penalty):
            raise ContinualLoraError(
                "The loss should be a number.",
                f"It became {(loss + penalty).item()} at step {state.step + 1} of {settings.steps}.",
                "Lower the learning rates, choose another class noun, or set mixed_precision to no; "
                "what was trained before this step is kept.",
            )
        trained = [p for group in state.optimizer.param_groups for p in group["params"] if p.requires_grad]
        nn.utils.clip_grad_norm_(trained, settings.gradient_clip)
        for group, peak in zip(state.optimizer.param_groups, state.peaks, strict=True):
            group["lr"] = peak * schedule_factor(state.step, settings.steps, settings.warmup_steps, settings.schedule)
        state.whole = False
        state.optimizer.step()
        state.step += 1
        state.losses.append(loss.item())
        state.penalties.append(penalty.item())
        state.norms.append(state.adapter.norm())
        state.whole = True
        yield StepRecord("train", state.step, settings.steps, state.losses[-1], state.penalties[-1])
    set_training(state.optimizer, False)


def total_penalty(methods: Iterable[Method], adapter: Adapter) -> Tensor | None:
    """What all methods together add to the loss, a scalar with its graph; None if nothing."""
    penalties = [p for method in methods if (p := method.penalty(adapter)) is not None]
    return torch.stack(penalties).sum() if penalties else None


def uses_bf16(mixed_precision: str, device: torch.device) -> bool:
    """Whether training passes run in bf16: asked for, or "auto" on a GPU that computes in it natively."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return mixed_precision == "bf16" or (mixed_precision == "auto" and native)
