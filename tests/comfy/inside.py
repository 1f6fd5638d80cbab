"""Scripts that run inside a ComfyUI checkout, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_inside(script: str, comfy_path: Path, parent: Path, argument: Path) -> dict[str, Any]:
    """What a script of this folder says in its last line, a JSON object.

    Args:
        script: its file name.
        comfy_path: the checkout.
        parent: an empty folder; the pack is linked into it, so that its root is never beside ComfyUI's own `nodes`.
        argument: of the script.
    """
    (parent / "continual_lora").symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, str(Path(__file__).with_name(script)), str(comfy_path), str(parent), str(argument)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
