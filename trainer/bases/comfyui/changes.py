"""What nodes did to CLIP, by name."""

from typing import Any

from .tokens import text_encoders
from .weights import patches_digest


def clip_changes(clip: Any) -> dict[str, str]:
    """What else than the checkpoint decides what CLIP makes of a prompt; empty if nothing.

    Of a CLIP that lacks a text encoder, those that it has count.
    """
    encoders = text_encoders(clip.tokenizer)
    there = [name for name in encoders if getattr(clip.cond_stage_model, name) is not None]
    options = clip.tokenizer_options
    found = {
        "clip layer": "" if clip.layer_idx is None else str(clip.layer_idx),
        "clip LoRAs": patches_digest(clip.patcher.patches).hex()[:12],
        "clip parts": "" if len(there) == len(encoders) else ", ".join(there),
        "clip tokenizer": ", ".join(f"{name} {options[name]}" for name in sorted(options)),
    }
    return {name: value for name, value in found.items() if value}
