"""Queue Evaluate Concept Sequence without its default encoder's packages: `python refused_early.py COMFYUI PARENT .`

PARENT holds the pack as `continual_lora`. Prints a JSON object, how images are to be compared -> what the host is told
of it before anything of the graph runs.
"""

import asyncio
import json
import sys
from typing import Any


def refusals() -> dict[str, str]:
    """See the module; other inputs are left out, and what the host says of that does not count."""
    sys.modules["efficientnet_lite_pytorch"] = None  # type: ignore[assignment]  # as if it were not installed
    import execution
    from continual_lora.nodes.evaluate import EvaluateConceptSequence

    import nodes

    nodes.NODE_CLASS_MAPPINGS[EvaluateConceptSequence.GET_SCHEMA().node_id] = EvaluateConceptSequence
    widgets = {"open_clip_weights": " "}
    ways: dict[str, dict[str, Any]] = {
        "default": widgets,
        "open_clip": {"open_clip_weights": "laion2b"},
        "linked name": {"open_clip_weights": ["2", 0]},
        "clip_vision": widgets | {"clip_vision": ["2", 0]},
    }
    found = {}
    for name, inputs in ways.items():
        prompt = {
            "1": {"class_type": "ContinualLoRA_EvaluateSequence", "inputs": inputs},
            "2": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": ""}},
        }
        _, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "1", {}))
        details = {error["details"] for error in errors if error["type"] == "custom_validation_failed"}
        found[name] = " ".join(details)
    return found


if __name__ == "__main__":
    from as_host import become_host

    become_host()
    sys.stdout.write("\n" + json.dumps(refusals()))
