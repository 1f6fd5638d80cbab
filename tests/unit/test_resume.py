"""A training that was cancelled or killed anywhere ends in the same bytes as one that never was."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.teach import teach

ROOT = Path(__file__).parents[2]
UNET = ToyUNet().requires_grad_(False)
SETTINGS = toy_settings(steps=3, fisher_draws=3, checkpoint_every=100)
# Training; calibration and two batches of the Fisher under three prompts, two of which pass without a graph first.
PASSES = 3 + 4 * 3 + 2 * (3 + 2)


class Cancel(BaseException):
    pass


def stop_at(count):
    def stop(now):
        if now == count:
            raise Cancel

    return stop


def one_concept(root):
    """A sequence with one concept, the same bytes every time."""
    return teach(ToyBase(UNET), toy_concept("fox"), SETTINGS, ConceptSequence(root, ToyBase(UNET).fingerprint))


def second(sequence, base=None, settings=SETTINGS, **hooks):
    return teach(base or ToyBase(UNET), toy_concept("cat", seed=1), settings, sequence, **hooks)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Makes a folder into a copy of one and the same sequence with one concept."""
    taught = one_concept(tmp_path_factory.mktemp("first") / "pets")

    def copy_to(root):
        shutil.copytree(taught.root, root, dirs_exist_ok=True)
        return replace(taught, root=root)

    return copy_to


@pytest.fixture(scope="module")
def reference(first, tmp_path_factory):
    root = tmp_path_factory.mktemp("reference")
    base = ToyBase(UNET)
    second(first(root), base)
    assert base.passes == PASSES
    return files_below(root)


def partial_of(root):
    (file,) = (root / "partial").iterdir()
    return load_file(file)


def test_cancelled_inside_any_pass_of_the_model(first, reference, tmp_path):
    for count in range(1, PASSES + 1):
        root = tmp_path / str(count)
        sequence = first(root)
        with pytest.raises(Cancel):
            second(sequence, ToyBase(UNET, on_predict=stop_at(count)))
        assert int(partial_of(root)["step"]) == min(count - 1, 3)
        assert ConceptSequence.open(root) == sequence
        resumed, records = ToyBase(UNET), []
        second(sequence, resumed, on_step=records.append)
        assert records[0].step == (count if count <= 3 else 1) and resumed.passes == PASSES - min(count - 1, 3)
        assert files_below(root) == reference, count


def test_cancelled_after_any_step_of_any_phase(first, reference, tmp_path):
    for count in range(1, 3 + 2 + 2):  # three training steps, two of the Fisher and its summary
        root = tmp_path / str(count)
        sequence, records = first(root), []

        def on_step(record, records=records, count=count):
            records.append(record)
            stop_at(count)(len(records))

        with pytest.raises(Cancel):
            second(sequence, on_step=on_step)
        assert records[-1].phase == ("train" if count <= 3 else "fisher")
        assert int(partial_of(root)["step"]) == min(count, 3)
        second(sequence)
        assert files_below(root) == reference, count


def test_cancelled_again_and_again(first, reference, tmp_path):
    sequence = first(tmp_path)
    for _ in range(3):  # each time one step further
        with pytest.raises(Cancel):
            second(sequence, on_step=lambda record: stop_at(record.step)(record.step))
    with pytest.raises(Cancel):
        second(sequence, ToyBase(UNET, on_predict=stop_at(20)))
    second(sequence)
    assert files_below(tmp_path) == reference


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", [1, 3])
def test_interrupted_inside_the_optimizer(step, moment, first, reference, tmp_path, monkeypatch):
    """Ctrl-C comes at any instruction: a state in the middle of a step must not be saved as a whole one."""
    sequence, plain, calls = first(tmp_path), torch.optim.AdamW.step, []

    def interrupted(optimizer):
        calls.append(1)
        if len(calls) < step:
            return plain(optimizer)
        if moment == "after":
            plain(optimizer)
        else:  # half of the parameters are updated
            optimizer.param_groups[0]["params"][0].data += 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            second(sequence)
    second(sequence)
    assert files_below(tmp_path) == reference


def test_a_checkpoint_every_few_steps_changes_nothing_in_the_result(first, reference, tmp_path):
    second(first(tmp_path), settings=toy_settings(steps=3, fisher_draws=3, checkpoint_every=1))
    found = files_below(tmp_path)
    assert set(found) == set(reference)
    different = {name for name in found if found[name] != reference[name]}
    assert different == {"manifest.json", "manifest.copy.json"}  # they name the setting


def test_other_settings_do_not_go_on_from_the_state(first, tmp_path):
    sequence, records = first(tmp_path), []
    with pytest.raises(Cancel):
        second(sequence, ToyBase(UNET, on_predict=stop_at(3)))
    second(sequence, settings=toy_settings(steps=4, fisher_draws=3), on_step=records.append)
    assert records[0].step == 1


def test_cancelled_and_resumed_on_the_embedded_base(tmp_path, random_tiny_folder):
    settings, concept = toy_settings(steps=2, fisher_draws=2, temperature=0.01), toy_concept("fox", count=2)

    def run(root, on_step=lambda record: None):
        base = TinyBase(random_tiny_folder)
        return teach(base, concept, settings, ConceptSequence(root, base.fingerprint), on_step)

    run(tmp_path / "whole")
    with pytest.raises(Cancel):
        run(tmp_path / "cut", lambda record: stop_at(1)(record.step))
    run(tmp_path / "cut")
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.test_resume import one_concept, second, toy_settings

def kill(record):
    if (record.phase, record.step) == ("train", 3):
        os.kill(os.getpid(), signal.SIGKILL)

second(one_concept(Path(sys.argv[1])), settings=toy_settings(steps=5, checkpoint_every=2), on_step=kill)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no signal that cannot be caught")
def test_killed_between_two_checkpoints(tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    settings = toy_settings(steps=5, checkpoint_every=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(killed)], cwd=ROOT, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert int(partial_of(killed)["step"]) == 2
    records = []
    second(ConceptSequence.open(killed), settings=settings, on_step=records.append)
    second(one_concept(whole), settings=settings)
    assert records[0].step == 3  # only what came after the checkpoint is trained again
    assert files_below(killed) == files_below(whole)
