"""The command line on a checkpoint, through a ComfyUI checkout."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "trainer" / "bases" / "tiny" / "samples"


def cli(*arguments: object) -> str:
    command = [sys.executable, "-m", "trainer", *map(str, arguments)]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_train_generate_and_score_on_a_checkpoint(comfy_path: Path, sd15_checkpoint: str, tmp_path: Path) -> None:
    checkpoint = ROOT / "build" / "checkpoints" / sd15_checkpoint
    base = ["--comfyui", comfy_path, "--checkpoint", checkpoint]
    sequence = tmp_path / "sequence"
    for name, noun in (("fox", "animal"), ("guitar", "instrument")):
        words = ["--token", f"my-{name}", "--class-noun", noun, "--sequence", sequence, "--recipe", "lora_ewc"]
        small = ["--steps", 1, "--rank", 2, "--resolution", 64, "--batch-size", 1, "--fisher-draws", 1]
        assert f"<my-{name}>" in cli("train", SAMPLES / name, *words, *small, *base)
    words[words.index(sequence)] = other = tmp_path / "checkpointed"
    words[words.index("my-guitar")], fox = "my-fox", ["--class-noun", "animal", "--gradient-checkpointing"]
    cli("train", SAMPLES / "fox", *words, *small, *base, *fox)
    (first,), (again,) = (list(line.glob("tasks/01-*/lora.safetensors")) for line in (sequence, other))
    theirs = load_file(again)
    assert all((value - theirs[name]).abs().max() < 1e-6 for name, value in load_file(first).items())
    out = tmp_path / "images"
    drawing = ["--sequence", sequence, "--count", 1, "--steps", 1, "--size", 64, "--out", out]
    cli("generate", "photo of a <my-fox> animal", *drawing, *base)
    with Image.open(out / "00000.png") as image:
        assert image.size == (64, 64)


def test_commands_on_the_embedded_base(tmp_path: Path) -> None:
    sequences = [tmp_path / "a", tmp_path / "b"]
    for name, noun, sequence in (("fox", "animal", sequences[0]), ("guitar", "instrument", sequences[1])):
        words = ["--token", f"my-{name}", "--class-noun", noun, "--sequence", sequence]
        cli("train", SAMPLES / name, *words, "--steps", 2, "--rank", 2, "--fisher-draws", 2)
    scores = cli("score", SAMPLES / "fox", "--sequence", sequences[0], "--prompts", "photo of a person", "--trials", 2)
    assert scores.count("image ") == 6
    assert "photo of a <my-fox> animal:" in scores
    small = ["--count", 2, "--steps", 1, "--dc-trials", 1, "--spectrum-draws", 2]
    table = cli("evaluate", sequences[0], *small)
    (report,) = sequences[0].glob("evaluation/reports/01-my-fox-*/report.html")
    assert "Features: EfficientNet-Lite0 (ImageNet)" in table and f"Report: {report}" in table
    head, row = (report.parent / "table.csv").read_text(encoding="utf-8").splitlines()
    assert head.startswith("encoder,after_task") and row.split(",")[:2] == ["EfficientNet-Lite0 (ImageNet)", "1"]
    drawn = {path: path.stat().st_mtime_ns for path in sequences[0].glob("evaluation/01-*/*/*.png")}
    assert len(drawn) == 2
    cli("evaluate", sequences[0], *small)
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    merged = tmp_path / "merged.safetensors"
    cli("merge", *sequences, "--method", "svd", "--rank", 3, "--out", merged)
    assert merged.stat().st_size > 0
