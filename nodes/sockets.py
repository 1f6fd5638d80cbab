"""The pack's own socket types."""

from comfy_api.v0_0_2 import io

Concept = io.Custom("CONCEPT")
ConceptSequence = io.Custom("CONCEPT_SEQUENCE")
Options = io.Custom("CONTINUAL_LORA_OPTIONS")

CATEGORY = "Continual LoRA"
