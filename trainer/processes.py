"""One training on several processes, started by `accelerate launch` or `torchrun`.

Every process draws the same images, times and noise from the same seed, makes its part of each pass of the network, and
gets the predictions of all; so all have the same loss. Going back, each sends the loss through its own predictions
only, and at the end of the pass the gradients of the trained parameters, which are small, are added up in one message:
the sums of one process in another order.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from .denoiser import Conditioning, Denoiser, Wrapped
from .errors import ContinualLoraError
from .work import Alone, Work


def launched_work() -> Work:
    """Together with the processes that a launcher has started beside this one; alone, if none has.

    To be called before anything is loaded: it says which GPU is this process's own.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return Alone()
    from accelerate import PartialState

    dist.init_process_group()  # for tensors on the CPU as well, which accelerate alone would leave out beside NCCL
    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes() if state.num_processes > 1 else Alone()


class Processes:
    """See `Work`; all of them call the same in the same order, but inside of `share` and `apart`.

    The process group is there already.
    """

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.first = self.rank == 0
        self.is_apart = False  # whether passes are made by this process alone for now
        self._pending: dict[int, tuple[nn.Parameter, Tensor]] = {}  # of the pass that goes back now

    @property
    def shares(self) -> bool:
        """See `Work`."""
        return not self.is_apart

    def shared(self, denoiser: Denoiser) -> Denoiser:
        """See `Work`."""
        return cast(Denoiser, SharedDenoiser(denoiser, self))

    def together(self, parameters: Iterable[nn.Parameter]) -> None:
        """See `Work`."""
        for number, parameter in enumerate(parameters):
            if parameter.requires_grad:
                parameter.register_hook(partial(self._wait, number, parameter))

    def _wait(self, number: int, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Nothing for now, instead of the gradient, which comes when those of all processes are there."""
        if self.is_apart:
            return gradient
        if not self._pending:
            torch.autograd.Variable._execution_engine.queue_callback(self._add_means)  # type: ignore[attr-defined]
        self._pending[number] = parameter, gradient
        return torch.zeros_like(gradient)

    def _add_means(self) -> None:
        # Of a prediction each has its own part of the gradient, times the count; of a penalty each has all.
        waiting = [self._pending[number] for number in sorted(self._pending)]
        self._pending = {}
        sums = self.total({str(place): gradient for place, (_, gradient) in enumerate(waiting)})
        for (parameter, _), total in zip(waiting, sums.values(), strict=True):
            cast(Tensor, parameter.grad).add_(total, alpha=1 / self.count)

    def share(self, count: int) -> Iterator[int]:
        """See `Work`; in turn."""
        for piece in range(self.rank, count, self.count):
            with self.apart():
                yield piece

    def total(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Work`; one message for all."""
        if not tensors:
            return {}
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors.values()])
        return {name: part.view_as(tensors[name]) for name, part in zip(tensors, parts, strict=True)}

    @contextmanager
    def apart(self) -> Iterator[None]:
        """See `Work`."""
        before, self.is_apart = self.is_apart, True
        try:
            yield
        finally:
            self.is_apart = before

    def agree(self, key: str) -> None:
        """See `Work`."""
        keys: list[str] = [""] * self.count
        dist.all_gather_object(keys, hashlib.sha256(key.encode()).hexdigest())
        if len(set(keys)) > 1:
            raise ContinualLoraError(
                "All processes should teach the same concept to the same sequence.",
                "Their images, settings, base or sequences differ.",
                "Give all the same files, and start them with the same command.",
            )

    def gathered(self, rows: Tensor) -> Tensor:
        """Everybody's rows [M, ...], one behind the other, [count * M, ...]; going back, each gets its own."""
        self._pending.clear()  # of a pass that was given up on its way back
        return cast(Tensor, _Gather.apply(rows.float().contiguous(), self))  # type: ignore[no-untyped-call]


class SharedDenoiser(Wrapped):
    """A denoiser of whose passes each process makes its part."""

    def __init__(self, denoiser: Denoiser, processes: Processes) -> None:
        super().__init__(denoiser)
        self._processes = processes

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser`."""
        own = self._denoiser.predict
        if self._processes.is_apart:
            return own(x_t, t, conditioning)
        rows = own_rows(len(x_t), self._processes.rank, self._processes.count).to(x_t.device)
        all_of_them = conditioning.expand(len(x_t)) if len(conditioning.context) == 1 else conditioning
        predictions = self._processes.gathered(own(x_t[rows], t[rows], all_of_them.rows(rows)))
        return predictions[: len(x_t)]


def own_rows(count: int, rank: int, processes: int) -> Tensor:
    """Which of `count` rows a process computes: equally many each, so that some compute again what another does.

    Put one behind the other, the rows of all begin with 0..count - 1.
    """
    each = -(-count // processes)
    return torch.arange(rank * each, (rank + 1) * each) % count


class _Gather(torch.autograd.Function):
    """See `Processes.gathered`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:  # noqa: ANN401
        ctx.processes, ctx.each = processes, len(rows)
        parts = [torch.empty_like(rows) for _ in range(processes.count)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        own = slice(ctx.processes.rank * ctx.each, (ctx.processes.rank + 1) * ctx.each)
        return gradients[0][own] * ctx.processes.count, None
