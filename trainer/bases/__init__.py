"""One way each to get a base model."""
