"""Time and memory of work on the device that computes, and parts of a benchmark in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def result_file(name: str) -> Path:
    """Where a benchmark of the device that computes keeps its result."""
    return Path(__file__).with_name("results") / f"{name}{'_cuda' if torch.cuda.is_available() else ''}.json"


def device_name() -> str:
    """Of the device that computes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def in_own_process(module: str, *arguments: object) -> Any:  # noqa: ANN401
    """What a module that is run says in its last line, in JSON."""
    return _said([sys.executable, "-m", module, *map(str, arguments)])


def on_processes(count: int, module: str, *arguments: object) -> Any:  # noqa: ANN401
    """The same of a module that `torchrun` starts `count` times, with one thread each; one process has no launcher."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, "-m", module, *map(str, arguments)]
    return _said(command, os.environ | {"OMP_NUM_THREADS": "1"})


def _said(command: list[str], environment: dict[str, str] | None = None) -> Any:  # noqa: ANN401
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class Messages:
    """What a process has told the others so far: the seconds that it took, and the bytes of its own part."""

    seconds: float = 0.0
    bytes: int = 0


@contextmanager
def counted_messages() -> Iterator[Messages]:
    """Count those of a block."""
    messages = Messages()
    whole = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}

    def counted(name: str) -> Callable[..., None]:
        def send(*tensors: Any) -> None:  # noqa: ANN401
            start = time.perf_counter()
            whole[name](*tensors)
            own: Tensor = tensors[-1]
            messages.seconds += time.perf_counter() - start
            messages.bytes += own.numel() * own.element_size()

        return send

    for name in whole:
        setattr(dist, name, counted(name))
    try:
        yield messages
    finally:
        for name, function in whole.items():
            setattr(dist, name, function)


def seconds_of(work: Callable[[], object]) -> float:
    """How long the work takes, until the device is done with it."""
    start = time.perf_counter()
    work()
    finish()
    return time.perf_counter() - start


def resident() -> float:
    """Bytes in use on the device that computes."""
    if torch.cuda.is_available():
        return float(torch.cuda.memory_allocated())
    return _status("VmRSS")


def reset_peak() -> None:
    """Forget the peak so far, which was the loading of the checkpoint."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """The most bytes since `reset_peak`."""
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _status("VmHWM")


def finish() -> None:
    """Wait until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
