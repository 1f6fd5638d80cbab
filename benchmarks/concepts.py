"""The sets of concepts that sequences are made of; none was ever seen by the embedded base."""

import json
from pathlib import Path

from trainer.cli.demo import SAMPLES, load_sample
from trainer.concept import Concept

# Six are reported on; settings are chosen on six others. The last two are made by scripts, see docs/benchmark.md.
SETS: dict[str, Path] = {
    "reported": SAMPLES,
    "tuning": Path(__file__).with_name("tuning_concepts"),
    "photos": Path("build/photos"),
    "long": Path("build/long"),
}


def concepts_of(name: str) -> list[Concept]:
    """A set's concepts, in the order of its list."""
    folder = SETS[name]
    return [load_sample(each, folder) for each in json.loads((folder / "samples.json").read_text(encoding="utf-8"))]
