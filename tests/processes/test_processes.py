"""One training on one, two and three processes: the same adapter, word, Fisher and scores."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.denoiser import Conditioning
from trainer.processes import own_rows

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launched(processes: int, *command: object) -> list[str]:
    """A command line that starts a script, or `-m` a module, in so many processes."""
    # Also without a GPU, where it would start a single process else.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
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
        assert sorted(run(*launched(count, script, folder)).split()) == [f"{rank}/{count}" for rank in range(count)]
    alone, *together = folders.values()
    files = sorted(path.relative_to(alone) for path in alone.rglob("tasks/*/**/*.safetensors"))
    assert len(files) == 2 * 3  # LoRA, word, Fisher and anchor of two tasks
    for folder in together:
        for file in files:
            expected, found = load_file(alone / file), load_file(folder / file)
            assert expected.keys() == found.keys()
            for name, value in expected.items():  # AdamW makes of rounding near 0 a step as large as any
                assert float((found[name] - value).norm()) <= 2e-3 * float(value.norm())
        expected, found = (load_file(f / "gradients.safetensors") for f in (alone, folder))
        assert all(float((found[n] - value).norm()) <= 5e-3 * float(value.norm()) for n, value in expected.items())
        pictures = sorted(path.relative_to(alone) for path in alone.rglob("evaluation/**/*.png"))
        assert len(pictures) == 3 * 2  # of the first concept after both tasks, and of the second
        for picture in pictures:
            expected, found = (np.asarray(Image.open(f / picture), np.int16) for f in (alone, folder))
            assert abs(expected - found).max() <= 2
        errors = [torch.tensor(json.loads((f / "errors.json").read_text())) for f in (alone, folder)]
        torch.testing.assert_close(*errors, rtol=1e-4, atol=0)


def test_one_that_fails_ends_all_and_says_why(tmp_path: Path) -> None:
    command = launched(2, Path(__file__).with_name("fail_together.py"), tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "OSError: the second one's disk broke" in done.stderr
    reached = [int(load_file(state)["step"]) for state in tmp_path.glob("sequence/partial/*.safetensors")]
    assert len(reached) == 1 and reached[0] < 10  # the first has not gone on alone, and what there was is kept


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
