"""The concept sequence on disk, and how files are written so that nothing is lost."""
