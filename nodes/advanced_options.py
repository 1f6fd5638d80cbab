"""The node with the rarely changed settings of the training."""

from typing import Any

from comfy_api.v0_0_2 import io

from ..trainer.settings import TrainSettings
from .setting_inputs import setting_inputs
from .sockets import CATEGORY, Options


class TrainOptions(io.ComfyNode):
    """Continual LoRA Options: everything that Train Continual LoRA has a good default for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """One widget a setting."""
        return io.Schema(
            node_id="ContinualLoRA_TrainOptions",
            display_name="Continual LoRA Options",
            category=CATEGORY,
            description="Advanced settings for Train Continual LoRA. Every default is what the node uses without it.",
            inputs=setting_inputs(advanced=True),
            outputs=[Options.Output(display_name="options", tooltip="Connect to Train Continual LoRA.")],
        )

    @classmethod
    def execute(cls, **values: Any) -> io.NodeOutput:
        """Check the values and pass them on."""
        TrainSettings(**values)  # an error here names this node, not the training
        return io.NodeOutput(values)
