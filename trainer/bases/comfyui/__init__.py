"""Everything about ComfyUI that the trainer needs: its models as ours, and ours as its."""
