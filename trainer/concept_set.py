"""A folder of concepts that are taught in sequence.

<folder>/samples.json        {"fox": "animal", "guitar": "instrument"}: class noun of each concept, in their order
<folder>/fox/a.png, a.txt    its images, with captions beside them

A concept's name is that of its folder, its token `my-<name>`.
"""

import json
from pathlib import Path

from .concept import Concept, load_concept
from .concept_files import caption_file, image_files
from .disk.names import check_file_name
from .errors import ContinualLoraError

LISTING = "samples.json"


def class_nouns(folder: Path) -> dict[str, str]:
    """Concept -> class noun, in the order in which they are taught.

    Raises:
        ContinualLoraError: there is no such listing.
    """
    path = folder / LISTING
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _no_listing(folder, f"It cannot be read: {error}.") from error
    if not isinstance(listed, dict) or not listed or not all(isinstance(noun, str) for noun in listed.values()):
        raise _no_listing(folder, "It holds something else.")
    for name in listed:
        check_file_name(name, LISTING)
    return listed


def load_member(folder: Path, name: str) -> Concept:
    """One concept of the folder; its token is `my-<name>`."""
    return load_concept(folder / name, token=f"my-{name}", class_noun=class_nouns(folder)[name], name=name)


def load_concepts(folder: Path) -> list[Concept]:
    """All of them, in their order."""
    return [load_member(folder, name) for name in class_nouns(folder)]


def files_of_concepts(folder: Path) -> list[Path]:
    """The files that are read: the listing, images and captions."""
    images = [file for name in class_nouns(folder) for file in image_files(folder / name)]
    return [folder / LISTING, *images, *filter(Path.is_file, map(caption_file, images))]


def _no_listing(folder: Path, came: str) -> ContinualLoraError:
    return ContinualLoraError(
        f"`{folder / LISTING}` should list the folders of the concepts and what each is.",
        came,
        'Write it like {"fox": "animal", "guitar": "instrument"}.',
    )
