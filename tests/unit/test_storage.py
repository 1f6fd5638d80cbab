"""A disk that is full or may not be written: said before the training where it can be known, and nothing is lost."""

import errno
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.adapters.lora import LoraAdapter
from trainer.disk import files, partial
from trainer.disk.files import write_bytes
from trainer.disk.names import check_file_name, check_words, shown
from trainer.disk.partial import room_needed
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError, StorageError
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
SETTINGS = toy_settings(steps=4, fisher_draws=2, checkpoint_every=1)


def add(root, word="fox", on_step=lambda record: None):
    line = ConceptSequence.create(root, ToyBase(UNET).fingerprint)
    base = ToyBase(UNET)
    return teach(base, toy_concept(word, seed=len(word)), SETTINGS, line, on_step)


class FailingDisk:
    """`write_bytes` fails for names that end so, while `failing` is on, with half of the file written."""

    def __init__(self, monkeypatch, ending, number=errno.ENOSPC):
        self.failing, self.tries, self.number = True, 0, number
        plain = os.fsync

        def fsync(handle):
            name = str(Path(f"/proc/self/fd/{handle}").readlink())
            if self.failing and name.removesuffix(".tmp").endswith(ending):
                self.tries += 1
                raise OSError(self.number, os.strerror(self.number))
            plain(handle)

        monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize(
    ("number", "came", "do"),
    [
        (errno.ENOSPC, "No space left on device", "Free space on the disk of"),
        (errno.EDQUOT, "quota exceeded", "Free space on the disk of"),
        (errno.EROFS, "Read-only file system", "Allow writing in"),
        (errno.EACCES, "Permission denied", "Allow writing in"),
        (errno.EIO, "Input/output error", "Check the disk of"),
        (errno.EILSEQ, "multibyte", "and the name"),
    ],
)
def test_three_facts_for_each_refusal_and_the_old_file_stays(tmp_path, monkeypatch, number, came, do):
    monkeypatch.setattr(files, "RENAME_PAUSE", 0)
    path = tmp_path / "some file"
    write_bytes(path, b"old")
    FailingDisk(monkeypatch, "some file", number)
    with pytest.raises(StorageError) as caught:
        write_bytes(path, b"new")
    message = str(caught.value)
    facts = ["`some file` should be written to", came.lower(), do.lower(), str(tmp_path)]
    assert all(fact.lower() in message.lower() for fact in facts), message
    assert files_below(tmp_path) == {"some file": b"old"}


def test_a_file_that_is_held_open_for_a_moment_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RENAME_PAUSE", 0)
    plain, held = Path.replace, [PermissionError(errno.EACCES, "used by another process")] * 3

    def replace(path, target):
        if held:
            raise held.pop()
        return plain(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_bytes(tmp_path / "file", b"new")
    assert files_below(tmp_path) == {"file": b"new"}


def test_no_room_is_said_before_the_training(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(StorageError, match=r"needs about 1\.0 MB on the disk of .* It has 0\.0 MB left\. Free some"):
        add(tmp_path / "pets", on_step=steps.append)
    assert steps == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_said_before_the_training(tmp_path, monkeypatch, number):
    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number))

    steps = []
    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(StorageError, match=r"`writing\.lock` should be written to"):
        add(tmp_path / "pets", on_step=steps.append)
    assert steps == []


def test_a_refused_state_does_not_stop_the_training(tmp_path, monkeypatch):
    expected = files_below(add(tmp_path / "whole").root)
    disk = FailingDisk(monkeypatch, ".safetensors")

    def on_step(record):
        disk.failing = record.phase == "train" and record.step < 3

    with pytest.warns(UserWarning, match=r"The state at step \d was not saved; the last saved one stays\. .*No space"):
        add(tmp_path / "pets", on_step=on_step)
    assert disk.tries == 2 and files_below(tmp_path / "pets") == expected


def test_a_finished_training_waits_for_room(tmp_path, monkeypatch):
    expected = files_below(add(tmp_path / "whole").root)
    disk, waited = FailingDisk(monkeypatch, "lora.safetensors"), []
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def on_step(record):
        if record.phase == "waiting for the disk":
            waited.append((record.step, record.total))
            disk.failing = record.step < 3

    with pytest.warns(UserWarning, match="finished and waits 10 minutes"):
        add(tmp_path / "pets", on_step=on_step)
    assert waited == [(1, 120), (2, 120), (3, 120)] and files_below(tmp_path / "pets") == expected


def test_what_was_trained_is_on_disk_when_the_wait_is_over_or_stopped(tmp_path, monkeypatch):
    expected = files_below(add(tmp_path / "whole").root)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(partial, "WAIT_TRIES", 3)

    def stop(record):
        if record.phase == "waiting for the disk":
            raise KeyboardInterrupt

    for hook, error in ((lambda record: None, StorageError), (stop, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            FailingDisk(patch, "manifest.json")
            with pytest.warns(UserWarning, match="manifest.json"), pytest.raises(error):
                add(tmp_path / "pets", on_step=hook)
        assert len(list((tmp_path / "pets" / "partial").iterdir())) == 1
    steps = []
    add(tmp_path / "pets", on_step=lambda record: steps.append(record.phase))
    assert "train" not in steps  # only what comes after the last step
    assert files_below(tmp_path / "pets") == expected


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_real_disk_that_fills_up(small_disk, tmp_path, monkeypatch):
    expected = files_below(add(tmp_path / "whole").root)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    filler = small_disk / "filler"

    def on_step(record):
        if record.phase == "train" and record.step == 2:
            with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 10))
        if record.phase == "waiting for the disk" and record.step == 2:
            filler.unlink()

    with pytest.warns(UserWarning, match="No space left on device"):
        add(small_disk / "pets", on_step=on_step)
    assert files_below(small_disk / "pets") == expected
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - 500_000))
    with pytest.raises(StorageError, match=r"It has 0\.[45] MB left"):
        add(small_disk / "more")


def test_room_covers_what_a_task_takes(tmp_path, monkeypatch):
    asked, largest = [], [0]
    monkeypatch.setattr(partial, "check_room", lambda root, needed: asked.append(needed))
    monkeypatch.setattr("trainer.teach.check_room", lambda root, needed: asked.append(needed))

    def on_step(record):
        largest[0] = max(largest[0], sum(map(len, files_below(tmp_path).values())))

    add(tmp_path / "pets", on_step=on_step)
    taken = max(largest[0], sum(map(len, files_below(tmp_path).values())))
    assert taken < asked[0] < taken + 1_010_000


def test_room_for_a_fisher_of_the_update():
    unet = ToyUNet().requires_grad_(False)
    for name in ("to_k", "to_v"):
        setattr(unet.middle_block[1].attn2, name, nn.Linear(768, 320, bias=False))
    adapter = LoraAdapter(unet, 16, 16.0, torch.Generator())
    state = SimpleNamespace(parameters=adapter.parameters, adapter=adapter, average={})
    of_factors, of_update = (room_needed(state, {}, 0, in_update=in_update, again=False) for in_update in (False, True))
    assert of_update - of_factors == 2 * 4 * 2 * (320 * 768 - 16 * (320 + 768))  # Fisher and anchor of two layers


@pytest.mark.parametrize(
    "name",
    [
        "pets",
        "my pets 2",
        "\N{FOX FACE}",
        "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}",
        "\u30ad\u30c4\u30cd",
        "x" * 100,
        "a.b",
    ],
)
def test_names_that_are_folders_everywhere(tmp_path, name):
    assert check_file_name(name, "sequence_name") == name
    assert add(tmp_path / name).root == tmp_path / name and ConceptSequence.open(tmp_path / name).tokens()


@pytest.mark.parametrize(
    ("name", "came"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("../../x", "holds '/'"),
        ("a/b", "holds '/'"),
        ("a\\b", "holds"),
        ("C:x", "holds ':'"),
        (".", "ends with a blank, or ends with a dot"),
        ("..", "ends with a blank, or ends with a dot"),
        ("pets.", "ends with a dot"),
        ("pets ", "ends with a blank"),
        (" pets", "begins"),
        ("CON", "name of a device on Windows"),
        ("nul.txt", "name of a device on Windows"),
        ("Com1", "name of a device on Windows"),
        ("LPT\u00b9", "name of a device on Windows"),
        ("a\0b", "holds '\\x00'"),
        ("a\nb", "holds '\\n'"),
        ("a\x7fb", "holds"),
        ("what?", "holds '?'"),
        ("x" * 300, "has 300 characters"),
        ("\N{FOX FACE}" * 60, "60 characters, 240 bytes"),
        ("\ud83d", "half a character"),
    ],
)
def test_names_that_are_not(name, came):
    with pytest.raises(ContinualLoraError) as caught:
        check_file_name(name, "sequence_name")
    message = str(caught.value)
    assert message.startswith('"sequence_name" should be a plain file name') and came in message
    assert message.endswith("Change it.") and len(message) < 250 and message.encode()


def test_words_that_no_file_can_hold():
    for text in ("a\x00b", "\ud83d", "bell\x07"):
        with pytest.raises(ContinualLoraError, match=r'"name" should be readable text.*control characters.*Write it'):
            check_words(text, "name")
    with pytest.raises(ContinualLoraError, match=r'"name" should have 200 characters at most\. It has 201\. Make it'):
        check_words("x" * 201, "name")
    check_words("\N{MAN}\u200d\N{WOMAN}, two\nlines\u00a0and \u202eall", "name")
    assert shown("x" * 99) == f"`{'x' * 57}...`" and shown("\ud83d\n") == r"`\ud83d\n`"


def test_half_a_character_is_refused_before_the_training_not_at_its_end():
    with pytest.raises(ContinualLoraError, match='"class_noun" should be readable text'):
        toy_concept("fox", noun="\ud83d")
    assert torch.is_tensor(toy_concept("fox", noun="\N{FOX FACE}").images[0])


def test_a_state_that_cannot_be_removed_does_no_harm(tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "used by another process")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        line = add(tmp_path / "pets")
    assert len(list((tmp_path / "pets" / "partial").iterdir())) == 1 and not list(tmp_path.rglob("*.damaged"))
    assert add(tmp_path / "pets") == line
