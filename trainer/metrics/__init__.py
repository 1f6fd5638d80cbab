"""Numbers about a finished sequence: pure functions of image features."""

from .continual import a_mmd, bwt_mmd, f_mmd, new_mmd
from .mmd import mmd, mmd_squared
from .similarity import image_similarity

__all__ = ["a_mmd", "bwt_mmd", "f_mmd", "image_similarity", "mmd", "mmd_squared", "new_mmd"]
