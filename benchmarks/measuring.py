"""Time and memory of work on the device that computes, and parts of a benchmark in a process of their own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def in_own_process(module: str, *arguments: object) -> Any:  # noqa: ANN401
    """What a module that is run says in its last line, in JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


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
