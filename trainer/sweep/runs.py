"""The runs of `python -m trainer sweep`: every sequence, recipe, adapter, strength and seed."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..bases.chosen import ChosenBase
from ..concept_set import files_of_concepts, load_concepts
from ..disk.names import MAX_BYTES, check_file_name
from ..disk.sequence import digest
from ..errors import ContinualLoraError
from ..evaluation.pictures import Drawing
from ..metrics.features import FeatureEncoder
from ..metrics.features.efficientnet import EfficientNetLite0
from ..metrics.features.open_clip import OpenClip
from ..planning import NOT_IN_KEY
from ..recipes import adapter_name, settings_by_recipe
from ..settings import TrainSettings
from .engines import Input, Place
from .one_run import COSTS, METRICS, measure_all, sequence_folder, teach_all
from .parcels import digest_of
from .sweep import Outcome

DIMENSIONS = ("recipe", "adapter", "penalty_weight", "seed")  # settings that a sweep has several of
NAMED = ("concepts", "recipe", "adapter", "strength")
COLUMNS = (*NAMED, "seed", "encoder", *METRICS, *COSTS, "settings", "measuring", "images", "base")


@dataclass(frozen=True)
class Measuring:
    """How a sequence is measured.

    Attributes:
        drawing: of the images.
        dc_trials: draws of the diffusion classifier; 0 leaves its accuracy out.
        open_clip: weights of CLIP, a file or a tag; empty is EfficientNet-Lite0.
        architecture: of these.
    """

    drawing: Drawing = field(default_factory=Drawing)
    dc_trials: int = 8
    open_clip: str = ""
    architecture: str = "ViT-B-32"

    @property
    def text(self) -> str:
        """What differs from the defaults, as JSON."""
        plain, own = ({**asdict(each), **asdict(each.drawing), "drawing": None} for each in (Measuring(), self))
        return json.dumps({name: value for name, value in own.items() if value != plain[name]})


@dataclass(frozen=True)
class Run:
    """A sequence to be taught and measured.

    Attributes:
        concepts: name of the input with its concepts.
        settings: of every task.
        identity: see `Job`.
    """

    concepts: str
    settings: TrainSettings
    identity: Mapping[str, str]

    @property
    def name(self) -> str:
        """See `Job`; runs that differ in anything have different ones."""
        words = "-".join(self.identity[name] or "none" for name in (*NAMED, "seed")).replace(".", "_")
        return f"{words.encode()[-MAX_BYTES:].decode(errors='ignore')}-{digest(dict(self.identity))[:8]}"


def concept_inputs(folders: Sequence[Path]) -> dict[str, Input]:
    """The folders of concepts by their names; all images are read once, so that what is wrong is said before the start.

    Raises:
        ContinualLoraError: a folder has no listing, an image cannot be read, or two folders have one name.
    """
    inputs: dict[str, Input] = {}
    for folder in map(Path.resolve, folders):
        check_file_name(folder.name, "the folder of concepts")
        if folder.name in inputs:
            raise ContinualLoraError(
                "The folders of concepts should have different names.",
                f'Two are called "{folder.name}".',
                "Rename one.",
            )
        load_concepts(folder)
        inputs[folder.name] = Input(folder, tuple(files_of_concepts(folder)))
    return inputs


def runs_of(
    inputs: Mapping[str, Input],
    settings: TrainSettings,
    values: Mapping[str, Sequence[Any]],
    measuring: Measuring,
    base: ChosenBase,
) -> Iterator[Run]:
    """Every combination; one that differs only in what its recipe does not use comes out the same run again.

    Args:
        inputs: name -> concepts.
        settings: what all have in common.
        values: name of `DIMENSIONS` -> its values.
        measuring: how they are measured.
        base: what they are taught to.
    """
    images, weights = {name: digest_of(source)[:12] for name, source in inputs.items()}, base.name
    penalized = settings_by_recipe()["penalty_weight"]
    for seed, concepts, recipe, adapter in product(values["seed"], inputs, values["recipe"], values["adapter"]):
        plain = replace(settings, seed=seed, recipe=recipe, adapter=adapter)
        for strength in values["penalty_weight"] if recipe in penalized else (None,):
            own = plain if strength is None else replace(plain, penalty_weight=strength)
            identity = {
                "concepts": concepts,
                "recipe": recipe,
                "adapter": adapter_name(recipe, adapter),
                "strength": "" if strength is None else f"{strength:.6g}",
                "seed": str(seed),
                "settings": settings_text(own),
                "measuring": measuring.text,
                "images": images[concepts],
                "base": weights,
            }
            yield Run(concepts, own, identity)


def settings_text(settings: TrainSettings) -> str:
    """What differs from the defaults and has no column of its own, as JSON; what changes no result does not count."""
    plain = asdict(TrainSettings())
    left_out = {*DIMENSIONS, *NOT_IN_KEY}
    own = asdict(settings).items()
    return json.dumps({name: value for name, value in own if name not in left_out and value != plain[name]})


def make(measuring: Measuring, base: ChosenBase, threads: int, run: Run, place: Place) -> Outcome:
    """Teach and measure; the files come from `place`.

    Raises:
        ContinualLoraError: the machine's pack has other weights of the embedded base than the driver's.
    """
    torch.set_num_threads(threads)
    concepts = load_concepts(place.inputs[run.concepts].root)
    if base.checkpoint is not None:
        base = replace(base, checkpoint=place.inputs["checkpoint"].root)
    elif base.name != run.identity["base"]:
        raise ContinualLoraError(
            f"`{platform.node()}` should have the embedded base {run.identity['base']}.",
            f"Its pack has {base.name}.",
            "Put the same version of the pack on every machine.",
        )
    open_base, artist = base.with_artist(measuring.drawing)
    with sequence_folder(place.work, run.name) as folder:
        taught = teach_all(folder, concepts, run.settings, open_base)
        encoder = _encoder(measuring, place)
        found = measure_all(taught, artist, encoder, open_base, measuring.dc_trials)
    return Outcome({**found.values, "encoder": encoder.name}, found.files)


def _encoder(measuring: Measuring, place: Place) -> FeatureEncoder:
    if not measuring.open_clip:
        return EfficientNetLite0()
    sent = place.inputs.get("open_clip")
    return OpenClip(sent.root if sent else measuring.open_clip, measuring.architecture)
