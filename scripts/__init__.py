"""What builds the files that the pack ships; not part of the installed pack."""
