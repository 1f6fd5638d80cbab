"""Numbers about a finished sequence: pure functions of features."""

from .continual import a_mmd, bwt_mmd, f_mmd, new_mmd
from .kid import kid
from .mmd import mmd, mmd_squared
from .similarity import image_similarity, text_similarity

__all__ = [
    "a_mmd",
    "bwt_mmd",
    "f_mmd",
    "image_similarity",
    "kid",
    "mmd",
    "mmd_squared",
    "new_mmd",
    "text_similarity",
]
