"""Flags out of the trainer's settings, and what several commands share."""

import argparse
import signal
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from ..bases.chosen import ChosenBase
from ..evaluation.pictures import Drawing
from ..recipes import RECIPES
from ..settings import TrainSettings
from ..task import StepRecord


def add_base_arguments(parser: argparse.ArgumentParser) -> None:
    """Which base model: the embedded one, or a checkpoint through ComfyUI."""
    group = parser.add_argument_group("base model", "the embedded one unless a checkpoint is named")
    group.add_argument("--checkpoint", type=Path, help="a Stable Diffusion checkpoint (needs --comfyui)")
    group.add_argument("--comfyui", type=Path, help="a ComfyUI checkout that loads it")


def add_settings_arguments(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """One flag for each setting of a training but those in `without`."""
    group = parser.add_argument_group("training")
    for item in fields(TrainSettings):
        if item.name in without:
            continue
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
    return TrainSettings(**{n: value for n, value in vars(arguments).items() if n in vars(TrainSettings())})


def chosen_base(arguments: argparse.Namespace) -> ChosenBase:
    """The base that the flags say."""
    folder: Path | None = arguments.comfyui
    return ChosenBase(arguments.checkpoint, folder and folder.absolute())


def add_measuring_arguments(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """How images are drawn and compared.

    Args:
        parser: gets the flags.
        prefix: of those flags that a training has too, such as "drawing-".
    """
    add, plain = parser.add_argument, Drawing()
    add("--count", type=int, default=plain.count, help="images of each concept, 2 or more (default: %(default)s)")
    add(f"--{prefix}seed", type=int, default=plain.seed, help="of the noise (default: %(default)s)")
    add(f"--{prefix}steps", type=int, default=plain.steps, help="sampling steps (default: %(default)s)")
    add("--guidance", type=float, default=plain.guidance, help="classifier-free guidance (default: %(default)s)")
    add("--size", type=int, default=plain.size, help="side in pixels (default: the base's own)")
    add("--sampler", default=plain.sampler, help="of ComfyUI, with --checkpoint (default: %(default)s)")
    add("--scheduler", default=plain.scheduler, help="of ComfyUI, with --checkpoint (default: %(default)s)")
    add("--dc-trials", type=int, default=8, help="draws of the diffusion classifier, 0 leaves it out (default: 8)")
    add(
        "--open-clip",
        default="",
        help="compare by CLIP: a .safetensors file, or a tag in the local cache (default: EfficientNet-Lite0)",
    )
    add("--architecture", default="ViT-B-32", help="of --open-clip (default: %(default)s)")


def drawing_of(arguments: argparse.Namespace, prefix: str = "") -> Drawing:
    """How to draw, as these flags say."""
    own = vars(arguments)
    prefixed: dict[str, Any] = {n: own.get(f"{prefix.replace('-', '_')}{n}", own.get(n)) for n in vars(Drawing())}
    return Drawing(**prefixed)


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
