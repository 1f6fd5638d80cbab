"""The files of a concept: its images, and for each the caption beside it."""

import uuid
from pathlib import Path

from .disk.files import write_bytes
from .disk.names import MAX_PROMPT, check_words, shown
from .errors import ContinualLoraError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, by name; hidden files are not meant.

    Raises:
        OSError: it cannot be read.
    """
    visible = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted((file for file in visible if file.suffix.lower() in SUFFIXES), key=lambda file: file.name)


def image_files(folder: Path) -> list[Path]:
    """The images directly in a folder, one at least.

    Raises:
        ContinualLoraError: there is none, or no such folder.
    """
    try:
        there = folder.is_dir()
        files = images_in(folder) if there else []
        others = sum(not file.name.startswith(".") for file in folder.iterdir()) if there else 0
    except OSError as error:
        raise ContinualLoraError(
            "Expected a folder with images of the concept.",
            f"{shown(str(folder))} cannot be read: {error.strerror}.",
            "Check the path, and whether you may read the folder.",
        ) from error
    if not there:
        raise ContinualLoraError(
            "Expected a folder with images of the concept.",
            f'There is no folder "{folder}".',
            "Check the path, or create the folder and put the images into it.",
        )
    if not files:
        raise ContinualLoraError(
            f"Expected at least one image ({', '.join(SUFFIXES)}) in the folder.",
            f'"{folder}" has {others} other files and no image.',
            "Put a few images of the concept directly into it.",
        )
    return files


def caption_file(image: Path) -> Path:
    """Where the caption of an image is, whether or not it has one: `fox.txt` beside `fox.png`."""
    return image.with_suffix(".txt")


def read_caption(image: Path) -> str:
    """The caption in one line; "" where there is none.

    Raises:
        ContinualLoraError: the file is no text.
    """
    text = caption_file(image)
    try:
        return " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else ""
    except (UnicodeDecodeError, OSError) as error:
        raise ContinualLoraError(
            "A caption file must be text in UTF-8.",
            f'"{text.name}" is not: {error}.',
            "Save it again with the encoding UTF-8.",
        ) from error


def write_caption(image: Path, caption: str) -> str:
    """Write the caption of an image, the whole of it or nothing; no other file is touched.

    An empty caption empties the file that is there and keeps it; where there is none, none is made.

    Args:
        image: the image, which has to be there.
        caption: blanks and line ends become single blanks.

    Returns:
        The caption as it will be read.

    Raises:
        ContinualLoraError: the caption is no text, or its place is taken by what is no plain file.
    """
    check_words(caption.replace("\r", "\n"), "caption", MAX_PROMPT)
    line, file = " ".join(caption.split()), caption_file(image)
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise ContinualLoraError(
            f'The caption of "{image.name}" should be a plain file.',
            f'"{file.name}" is a link or a folder.',
            "Put a text file into its place.",
        )
    if line or file.exists():
        # A name of its own, since a file of the user's may be called `fox.txt.tmp`.
        write_bytes(file, f"{line}\n".encode() if line else b"", file.with_name(f".{uuid.uuid4().hex}.tmp"))
    return line
