"""The sets of concepts that sequences are made of; none was ever seen by the embedded base."""

from collections.abc import Iterable
from pathlib import Path

from benchmarks.job import Job
from trainer.cli.demo import SAMPLES
from trainer.concept_set import files_of_concepts
from trainer.sweep.engines import Input

# Six are reported on; settings are chosen on six others. The last two are made by scripts, see docs/benchmark.md.
SETS: dict[str, Path] = {
    "reported": SAMPLES,
    "tuning": Path(__file__).with_name("tuning_concepts"),
    "photos": Path("build/photos"),
    "long": Path("build/long"),
}


def inputs_of(jobs: Iterable[Job]) -> dict[str, Input]:
    """The sets that runs read."""
    return {name: Input(SETS[name].absolute(), _files(SETS[name])) for name in sorted({job.concepts for job in jobs})}


def _files(folder: Path) -> tuple[Path, ...]:
    return tuple(files_of_concepts(folder.absolute()))
