"""Memory of the device that computes, and waiting for it."""

from pathlib import Path

import torch


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
