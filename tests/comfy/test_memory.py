"""What a cancelled training leaves behind in the server: nothing."""

from pathlib import Path
from typing import Any

from tests.server import Client, Server

from .test_tiny_base import pixels, text_to_image
from .test_workflows import load, of_kind, sequence_folder, wait_until

CYCLES, WARM_UP = 20, 3


def resident_bytes(server: Server) -> int:
    """The memory of the server's process that is in RAM."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def training(client: Client, seed: int) -> dict[str, Any]:
    """The first training of the quickstart alone, longer than the test waits."""
    quickstart = load(client, "quickstart_cpu")
    number, _ = of_kind(quickstart, "ContinualLoRA_Train")
    inputs = {**quickstart[number]["inputs"], "seed": seed, "sequence_name": f"cancelled {seed}", "steps": 1000}
    inputs["rank"] = 128  # so large that one training kept alive would be 1 % of the process
    prompt = {n: node for n, node in quickstart.items() if n in {v[0] for v in inputs.values() if isinstance(v, list)}}
    (options,) = of_kind(prompt, "ContinualLoRA_TrainOptions")
    prompt[options]["inputs"]["checkpoint_every"] = 2
    return prompt | {"train": {"class_type": "ContinualLoRA_Train", "inputs": inputs}}


def test_cancelled_trainings_leave_the_memory_and_the_model_as_they_were(client: Client, server: Server) -> None:
    before = pixels(client, text_to_image("photo of a cat", seed=5))
    for cycle in range(WARM_UP + CYCLES):
        if cycle == WARM_UP:
            start = resident_bytes(server)
        prompt_id = client.queue(training(client, cycle))
        partial = sequence_folder(server, f"cancelled {cycle}") / "partial"
        wait_until(lambda folder=partial: list(folder.glob("*.safetensors")), 120)
        client.interrupt()
        assert client.wait(prompt_id).interrupted
    assert resident_bytes(server) <= 1.02 * start
    pixels(client, text_to_image("photo of a cat", seed=6))  # so that the first is not answered from the cache
    assert pixels(client, text_to_image("photo of a cat", seed=5)).equal(before)
