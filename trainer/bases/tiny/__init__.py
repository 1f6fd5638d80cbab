"""The embedded base model: Stable Diffusion in miniature."""
