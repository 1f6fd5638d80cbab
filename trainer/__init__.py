"""Continual personalization of text-to-image diffusion models; plain PyTorch."""
