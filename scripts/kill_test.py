"""Kill a training of two concepts at random moments, and see that nothing is lost: `python -m scripts.kill_test`.

Each trial starts the training in a process of its own and kills it (SIGKILL; on Windows TerminateProcess) at a random
moment. Then the sequence must open, its newest task must draw the same images to the bit, and the same training, run
again, must end in the same bytes as one that was never disturbed.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from trainer.apply import apply_sequence
from trainer.bases.tiny.base import TinyBase
from trainer.cli.demo import load_sample
from trainer.disk.manifest import MANIFEST
from trainer.disk.sequence import ConceptSequence
from trainer.sampling import generate
from trainer.settings import TrainSettings
from trainer.teach import teach

CONCEPTS = ("fox", "sunflower")
# Every phase there is, each a few passes long, and a write after every step.
SETTINGS = TrainSettings(
    recipe="lora_dsc_ewc_dc",
    steps=8,
    rank=4,
    learning_rate=1e-2,
    batch_size=2,
    fisher_draws=8,
    consolidation=0.5,
    checkpoint_every=1,
)
READY = "ready"


def train(root: Path) -> ConceptSequence:
    """Both concepts; what is there already is found, what was interrupted goes on."""
    line = ConceptSequence.create(root, TinyBase().fingerprint)
    for name in CONCEPTS:
        line = teach(TinyBase(), load_sample(name), SETTINGS, line)
    return line


def drawn(line: ConceptSequence) -> Tensor:
    """Two images of the newest concept."""
    base = TinyBase()
    tokens = apply_sequence(base, line)
    with torch.no_grad():
        prompt, empty = base.encode_prompt(line.tasks[-1].prompt, tokens), base.encode_prompt("", tokens)
    return generate(base, prompt, empty, count=2, seed=0, steps=4)


def bytes_below(root: Path) -> dict[str, bytes]:
    """Every file by its name below the sequence."""
    return {f.relative_to(root).as_posix(): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def kill_at(moment: float, root: Path) -> str:
    """Start a training and kill it `moment` seconds after it begins; says where it was."""
    command = [sys.executable, "-m", "scripts.kill_test", "--child", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == READY
        time.sleep(moment)
        ended = child.poll() is not None
        child.kill()
    done = sum(1 for _ in root.glob("tasks/??-*")) - sum(1 for _ in root.glob("tasks/*.new"))
    states, halves = len(list(root.glob("partial/*.safetensors"))), len([*root.rglob("*.tmp"), *root.rglob("*.new")])
    place = "ended before" if ended else f"{done} tasks, {states} states, {halves} half-written files"
    return f"killed after {moment:5.2f} s ({place})"


def check(root: Path, reference: ConceptSequence, pictures: list[Tensor]) -> str:
    """What a killed training left, then the same training to its end; raises AssertionError with what was lost."""
    found = "no task yet"
    if (root / MANIFEST).exists():
        line = ConceptSequence.open(root)
        count = len(line.tasks)
        assert [task.key for task in line.tasks] == [task.key for task in reference.tasks[:count]], "other tasks"
        assert torch.equal(drawn(line), pictures[count - 1]), f"task {count} draws other images"
        found = f"task {count} draws as before"
    assert train(root).head == reference.head, "another end"
    left, expected = bytes_below(root), bytes_below(reference.root)
    left = {name: content for name, content in left.items() if not name.startswith("partial/")}
    assert left == expected, f"other files: {sorted(n for n in {*left, *expected} if left.get(n) != expected.get(n))}"
    return f"opens, {found}; resumed to the same bytes"


def main() -> None:
    """Run the trials; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/kill_test"), help="(default: %(default)s)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a sum in two threads may be another one in the last bit
    if arguments.child:
        import_module("peft")  # seconds, in which nothing would happen
        print(READY, flush=True)
        train(arguments.child)
        return
    folder: Path = arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    reference = train(folder / "undisturbed")
    start = time.monotonic()
    train(folder / "timed")
    duration = time.monotonic() - start
    pictures = [drawn(reference.up_to(count)) for count in range(1, len(CONCEPTS) + 1)]
    moments, failures = random.Random(arguments.seed), 0
    for trial in range(1, arguments.trials + 1):
        root = folder / f"{trial:02d}"
        killed = kill_at(moments.uniform(0, duration), root)
        try:
            outcome = check(root, reference, pictures)
            shutil.rmtree(root)
        except Exception as error:
            failures += 1
            outcome = f"LOST: {type(error).__name__}: {error} (kept in {root})"
        print(f"{trial:3d}: {killed}: {outcome}", flush=True)
    print(f"{arguments.trials} kills within {duration:.1f} s of training, {failures} with a loss")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
