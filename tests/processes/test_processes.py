"""One training on one, two and three processes: the same adapter, word, Fisher and scores."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.denoiser import Conditioning
from trainer.processes import own_rows

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launched(processes: int, *command: object) -> list[str]:
    """A command line that starts a script, or `-m` a module, in so many processes."""
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, *(launcher if processes > 1 else []), *map(str, command)]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(("count", "processes"), [(1, 3), (2, 3), (4, 2), (4, 3), (8, 3), (6, 2)])
def test_rows_of_all_begin_with_every_row_in_order(count: int, processes: int) -> None:
    rows = [own_rows(count, rank, processes) for rank in range(processes)]
    assert torch.cat(rows)[:count].tolist() == list(range(count))
    assert len({len(own) for own in rows}) == 1 and len(rows[0]) == -(-count // processes)


def test_rows_of_prompts() -> None:
    prompts = Conditioning(torch.arange(12.0).view(3, 2, 2), torch.arange(3.0)[:, None])
    chosen = prompts.rows(torch.tensor([2, 0]))
    assert chosen.context.tolist() == [[[8, 9], [10, 11]], [[0, 1], [2, 3]]]
    assert chosen.pooled is not None and chosen.pooled.tolist() == [[2], [0]]


def test_any_number_of_processes_teaches_the_same(tmp_path: Path) -> None:
    folders = {count: tmp_path / str(count) for count in (1, 2, 3)}
    script = Path(__file__).with_name("teach_together.py")
    for count, folder in folders.items():
        folder.mkdir()
        run(*launched(count, script, folder))
    alone, *together = folders.values()
    files = sorted(path.relative_to(alone) for path in alone.rglob("tasks/*/**/*.safetensors"))
    assert len(files) == 2 * 3  # LoRA, word, Fisher and anchor of two tasks
    for folder in together:
        for file in files:
            expected, found = load_file(alone / file), load_file(folder / file)
            assert expected.keys() == found.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-5 * float(value.abs().max()))
        errors = [torch.tensor(json.loads((f / "errors.json").read_text())) for f in (alone, folder)]
        torch.testing.assert_close(*errors, rtol=1e-4, atol=0)


def test_stopped_on_three_processes_and_gone_on_with_one(tmp_path: Path) -> None:
    command = ["-m", "trainer", "train", ROOT / "trainer/bases/tiny/samples/fox", "--sequence", tmp_path / "line"]
    command += ["--token", "fox", "--class-noun", "animal", "--steps", 60, "--rank", 2, "--batch-size", 3]
    command += ["--recipe", "lora", "--checkpoint-every", 5]
    training = subprocess.Popen(
        launched(3, *command), cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    partial = tmp_path / "line" / "partial"
    deadline = time.monotonic() + 300
    while not list(partial.glob("*.safetensors")):
        assert time.monotonic() < deadline and training.poll() is None
        time.sleep(0.05)
    os.killpg(training.pid, 2)  # Ctrl+C
    assert training.wait(timeout=120) != 0
    (state,) = partial.glob("*.safetensors")
    reached = int(load_file(state)["step"])
    assert 5 <= reached < 60
    said = run(*launched(1, *command))
    assert "Concept 1, <fox>" in said
    (log,) = tmp_path.glob("line/tasks/*/log.json")
    assert len(json.loads(log.read_text())["loss"]) == 60
    assert not list(partial.glob("*.safetensors"))
