"""What one training is fed with and steered by."""
