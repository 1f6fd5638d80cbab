"""The errors of the pack that are meant for the user to read."""


class ContinualLoraError(ValueError):
    """Something the user can put right.

    Three facts, one sentence each: what was expected, what came, what to do.

    Args:
        expected: what was wanted, in the user's words.
        came: what was found instead.
        do: what to change.
    """

    __module__ = "continual_lora"  # the page puts it before the words, and the whole path would bury them

    def __init__(self, expected: str, came: str, do: str) -> None:
        # Half a character, which broken JSON brings, could not be printed or sent to the page.
        super().__init__(f"{expected} {came} {do}".encode(errors="backslashreplace").decode())


class StorageError(ContinualLoraError):
    """The disk refused: it is full, may not be written, or cannot hold the name."""


class BusyError(ContinualLoraError):
    """Another run is writing there now; it may be done in a moment."""
