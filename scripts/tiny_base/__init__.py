"""Builds the embedded base model from the emoji grid."""
