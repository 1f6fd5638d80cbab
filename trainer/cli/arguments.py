"""Flags out of the trainer's settings, and what several commands share."""

import argparse
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from ..bases.tiny.base import TinyBase
from ..denoiser import Denoiser
from ..errors import ContinualLoraError
from ..evaluation.pictures import Artist, own_artist
from ..recipes import RECIPES
from ..settings import TrainSettings
from ..task import StepRecord


def add_base_arguments(parser: argparse.ArgumentParser) -> None:
    """Which base model: the embedded one, or a checkpoint through ComfyUI."""
    group = parser.add_argument_group("base model", "the embedded one unless a checkpoint is named")
    group.add_argument("--checkpoint", type=Path, help="a Stable Diffusion checkpoint (needs --comfyui)")
    group.add_argument("--comfyui", type=Path, help="a ComfyUI checkout that loads it")


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting of a training."""
    group = parser.add_argument_group("training")
    for item in fields(TrainSettings):
        flag, text = f"--{item.name.replace('_', '-')}", f"{item.metadata['help']} (default: {item.default!r})"
        choices = list(RECIPES) if item.name == "recipe" else item.metadata.get("choices")
        if isinstance(item.default, bool):
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, action=action, default=item.default, help=item.metadata["help"])
        else:
            group.add_argument(
                flag, type=type(item.default), choices=choices, default=item.default, help=text.replace("%", "%%")
            )


def settings_of(arguments: argparse.Namespace) -> TrainSettings:
    """The settings that the flags say."""
    return TrainSettings(**{item.name: getattr(arguments, item.name) for item in fields(TrainSettings)})


def open_base(arguments: argparse.Namespace) -> Denoiser:
    """A fresh view of the chosen base."""
    if arguments.checkpoint is None:
        return TinyBase()
    loaded = _load(arguments)
    from ..bases.comfyui.base import ComfyBase

    return ComfyBase(*loaded)


def base_and_artist(arguments: argparse.Namespace) -> tuple[Callable[[], Denoiser], Artist]:
    """What opens a fresh view of the chosen base, and who draws with it: the host, or on the embedded base ourselves.

    The checkpoint is loaded once.
    """
    count, seed, steps, guidance = arguments.count, arguments.seed, arguments.steps, arguments.guidance
    if arguments.checkpoint is None:
        return TinyBase, own_artist(TinyBase, count, seed, steps, guidance, arguments.size)
    loaded = _load(arguments)
    from ..bases.comfyui.base import ComfyBase
    from ..bases.comfyui.sampling import host_artist

    size = arguments.size or ComfyBase(*loaded).resolution
    artist = host_artist(*loaded, count, seed, steps, guidance, arguments.sampler, arguments.scheduler, size)
    return lambda: ComfyBase(*loaded), artist


def _load(arguments: argparse.Namespace) -> tuple[object, object, object]:
    if arguments.comfyui is None:
        raise ContinualLoraError(
            'A checkpoint is loaded by ComfyUI, so "--checkpoint" goes with "--comfyui".',
            "Only the checkpoint is given.",
            "Name the folder of a ComfyUI checkout.",
        )
    from ..bases.comfyui.checkpoint import load_checkpoint

    return load_checkpoint(arguments.comfyui, arguments.checkpoint)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of the user, and of a launcher


class Bar:
    """A progress bar for every phase; Ctrl+C stops after the running step, so that the training can be resumed.

    Args:
        label: stands before it.
        shown: False for a process beside the one that shows it; a launcher ends these when that one stops.
    """

    def __init__(self, label: str = "", shown: bool = True) -> None:
        self.label, self.shown, self._phase, self._stop = label, shown, "", False
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "Bar":
        handlers = dict.fromkeys(STOP_SIGNALS, self._asked_to_stop) if self.shown else {signal.SIGINT: signal.SIG_IGN}
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._bar is not None:
            self._bar.close()

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def __call__(self, record: StepRecord) -> None:
        """Show a step."""
        self.show(record.phase, record.step, record.total, f"loss {record.loss:.4f}")

    def show(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Show `done` of `total`."""
        if self._bar is None or phase != self._phase:
            if self._bar is not None:
                self._bar.close()
            self._bar, self._phase = tqdm(total=total, desc=f"{self.label}{phase}", disable=not self.shown), phase
        self._bar.update(done - self._bar.n)
        self._bar.set_postfix_str(note, refresh=False)
        if self._stop:
            raise KeyboardInterrupt
