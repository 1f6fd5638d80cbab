"""Names and texts of the user that become files and folders, or go into them."""

import re
import unicodedata

from ..errors import ContinualLoraError

# Never a file name on Windows, whatever the ending. The superscripts count as digits there.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
MAX_NAME = 100
MAX_BYTES = 200  # of 255 that file systems hold; the rest is for endings
MAX_WORDS = 200
MAX_PROMPT = 10_000


def is_reserved(name: str) -> bool:
    """Whether Windows keeps the name for a device, `CON` or `con.txt`."""
    return _RESERVED.fullmatch(name.split(".", maxsplit=1)[0].strip()) is not None


def check_file_name(name: str, what: str) -> str:
    """A name that is one file or folder on every system; letters of any language and emoji are fine.

    Args:
        name: what the user wrote.
        what: the input that it was written into.

    Returns:
        The name.

    Raises:
        ContinualLoraError: it is a path, empty, too long, reserved, or has characters that some system does not take.
    """
    wrong = _wrong_with(name)
    if wrong:
        raise ContinualLoraError(
            f'"{what}" should be a plain file name, such as "my pets".', f"{shown(name)} {wrong}.", "Change it."
        )
    return name


def _wrong_with(name: str) -> str:
    found = _FORBIDDEN.search(name)
    size = f"{len(name)} characters, {_num_bytes(name)} bytes"
    wrong = {
        "is empty": not name.strip(),
        "holds half a character, which no file can hold": not is_text(name),
        f"holds {found[0] if found else ''!r}, which a file name may not": found is not None,
        "begins or ends with a blank, or ends with a dot": name != name.strip() or name.endswith("."),
        "is the name of a device on Windows": is_reserved(name),
        f"has {size}; {MAX_NAME} and {MAX_BYTES} are the most": len(name) > MAX_NAME or _num_bytes(name) > MAX_BYTES,
    }
    return next((text for text, is_so in wrong.items() if is_so), "")


def _num_bytes(name: str) -> int:
    return len(name.encode(errors="replace"))


def check_words(text: str, what: str, most: int = MAX_WORDS) -> None:
    """Raise unless a text of the user can be kept in a file and shown in a line.

    Args:
        text: what the user wrote.
        what: the input that it was written into.
        most: characters.
    """
    if not is_text(text) or _has_controls(text.replace("\n", " ").replace("\t", " ")):
        raise ContinualLoraError(
            f'"{what}" should be readable text.', f"{shown(text)} holds control characters.", "Write it again by hand."
        )
    if len(text) > most:
        raise ContinualLoraError(
            f'"{what}" should have {most} characters at most.', f"It has {len(text)}.", "Make it shorter."
        )


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it; a lone half of a surrogate pair, as broken JSON brings it, cannot be written."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_controls(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text)


def shown(text: str) -> str:
    """A text as an error quotes it: short, and readable whatever it holds."""
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return f"`{short}`" if is_text(short) and not _has_controls(short) else f"`{ascii(short)[1:-1]}`"
