"""Every formula of the trainer as a pure function."""
