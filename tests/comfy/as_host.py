"""How a script of this folder becomes ComfyUI on the CPU, with the pack beside it."""

# ruff: noqa: TID251 (runs inside ComfyUI)

import sys
from pathlib import Path


def become_host() -> list[str]:
    """Of `script.py COMFYUI PARENT ...`, where PARENT holds the pack as `continual_lora`; returns all arguments."""
    arguments = sys.argv[1:]
    sys.path[0:1] = arguments[:2]  # instead of this folder, of which nothing may hide ComfyUI's
    sys.path.append(str(Path(__file__).parent))
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()  # otherwise ComfyUI does not see --cpu
    return arguments
