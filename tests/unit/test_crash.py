"""The machine may stop at any write: what was taught before stays, and teaching again works."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.disk.files import write_bytes
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
SETTINGS = toy_settings(steps=2, fisher_draws=1, recipe="lora_ewc", checkpoint_every=1)


class Crash(BaseException):
    pass


class Disk:
    """Counts every change on disk and fails from the one numbered `crash_at` on, as a dead process would."""

    def __init__(self, crash_at=0):
        self.crash_at, self.calls, self.synced, self.unsynced = crash_at, [], set(), []

    def change(self, what):
        self.calls.append(what)
        if self.crash_at and len(self.calls) >= self.crash_at:
            raise Crash

    def wrap(self, name, plain):
        def changed(*args, **kwargs):
            moved = name in ("replace", "rename") and args[0].is_file()
            if moved and args[0].stat().st_ino not in self.synced:
                self.unsynced.append(args[0])
            self.change(f"{name} {Path(args[0]).name}" if isinstance(args[0], Path) else name)
            if name == "fsync":
                self.synced.add(os.fstat(args[0]).st_ino)
            return plain(*args, **kwargs)

        return changed

    def open(self, path, mode="r", *args, **kwargs):
        if "r" in mode:
            return self.plain_open(path, mode, *args, **kwargs)
        self.change(f"open {path.name}")
        return _HalfWriter(self, self.plain_open(path, mode, *args, **kwargs))


class _HalfWriter:
    """A file of which only the first half is written when the machine stops."""

    def __init__(self, disk, file):
        self.disk, self.file = disk, file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, content):
        try:
            self.disk.change("write")
        except Crash:
            self.file.write(content[: len(content) // 2])
            raise
        return self.file.write(content)


@contextmanager
def disk_that_crashes(at=0):
    disk = Disk(at)
    disk.plain_open = Path.open
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in ((Path, ("replace", "rename", "mkdir", "unlink")), (os, ("fsync",)), (shutil, ("rmtree",))):
            for name in names:
                patch.setattr(owner, name, disk.wrap(name, getattr(owner, name)))

        def open_through_disk(path, *args, **kwargs):
            return disk.open(path, *args, **kwargs)

        patch.setattr(Path, "open", open_through_disk)
        yield disk


def add(sequence, word):
    return teach(ToyBase(UNET), toy_concept(word, seed=len(word)), SETTINGS, sequence)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folder of a sequence with one concept, the same with two, and the changes on disk from one to the other."""
    one, two = tmp_path_factory.mktemp("one") / "pets", tmp_path_factory.mktemp("two") / "pets"
    add(ConceptSequence(one, ToyBase(UNET).fingerprint), "fox")
    shutil.copytree(one, two)
    with disk_that_crashes() as disk:
        add(ConceptSequence.open(two), "wildcat")
    return one, two, disk


def check_teaching_again(root, one, two):
    """`root` was left by a crash of the second task: is the first whole, and does the second end as ever?"""
    first, before = ConceptSequence.open(one), files_below(one / "tasks")
    opened = ConceptSequence.open(root)
    assert opened.up_to(1) == ConceptSequence(root, first.base, first.head)
    assert opened.head in (first.head, ConceptSequence.open(two).head)
    assert {name: content for name, content in files_below(root / "tasks").items() if name in before} == before
    opened.tokens(), opened.method_state(), opened.lora(opened.tasks[-1])  # whatever is the newest can be read
    add(opened.up_to(1), "wildcat")
    found = files_below(root)
    leftover = [name for name in found if name.startswith("partial")]  # harmless: the key is found before it is read
    assert {name: content for name, content in found.items() if name not in leftover} == files_below(two)


def test_every_kind_of_write_is_seen(stages):
    _, _, disk = stages
    kinds = {call.split()[0] for call in disk.calls}
    assert kinds == {"mkdir", "open", "write", "fsync", "replace", "unlink"} and len(disk.calls) > 35
    assert disk.unsynced == []  # every file is flushed before its name is given to it


def test_the_manifest_comes_last(stages):
    _, _, disk = stages
    names = [call for call in disk.calls if call.startswith("replace")]
    assert names[-3].startswith("replace 02-wildcat")
    assert names[-2:] == ["replace manifest.copy.json.tmp", "replace manifest.json.tmp"]
    position = disk.calls.index(names[-1])
    assert [call.split()[0] for call in disk.calls[position + 1 :]] == ["fsync", "unlink"]
    folder = disk.calls.index(names[-3])
    assert disk.calls[folder + 1] == "fsync"  # the folder's name is on disk before the manifest speaks of it


def test_crash_at_any_write_of_the_second_task(stages, tmp_path):
    one, two, disk = stages
    for crash_at in range(1, len(disk.calls) + 1):
        root = tmp_path / str(crash_at) / "pets"
        shutil.copytree(one, root)
        with disk_that_crashes(crash_at), pytest.raises(Crash):
            add(ConceptSequence.open(root), "wildcat")
        check_teaching_again(root, one, two)


def test_second_crash_while_the_first_is_cleaned_up(stages, tmp_path):
    one, two, disk = stages
    renamed = next(i for i, call in enumerate(disk.calls, start=1) if call.startswith("replace 02-wildcat"))
    for first in (renamed, renamed + 1):  # the leftover is the unfinished folder, or the finished one
        left = tmp_path / f"{first}" / "pets"
        shutil.copytree(one, left)
        with disk_that_crashes(first), pytest.raises(Crash):
            add(ConceptSequence.open(left), "wildcat")
        for again in range(2, 10):
            root = tmp_path / f"{first}-{again}" / "pets"
            shutil.copytree(left, root)
            with disk_that_crashes(again) as second, pytest.raises(Crash):
                add(ConceptSequence.open(root), "wildcat")
            assert second.calls[0] == "mkdir pets" and second.calls[1].startswith("rmtree 02-wildcat")
            check_teaching_again(root, one, two)


def test_crash_at_any_write_of_the_first_task(tmp_path):
    base = ToyBase(UNET).fingerprint
    whole = tmp_path / "whole"
    with disk_that_crashes() as disk:
        add(ConceptSequence(whole, base), "fox")
    manifest = next(i for i, call in enumerate(disk.calls, start=1) if call == "replace manifest.json.tmp")
    for crash_at in range(1, len(disk.calls) + 1, 3):
        root = tmp_path / str(crash_at)
        with disk_that_crashes(crash_at), pytest.raises(Crash):
            add(ConceptSequence.create(root, base), "fox")
        if crash_at <= manifest:
            with pytest.raises(ContinualLoraError, match="holds no manifest"):
                ConceptSequence.open(root)
        add(ConceptSequence.create(root, base), "fox")
        assert files_below(root / "tasks") == files_below(whole / "tasks")
        assert (root / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "new folder" / "file"
    write_bytes(path, b"old content")
    with disk_that_crashes() as disk:
        write_bytes(path, b"new")
    assert [call.split()[0] for call in disk.calls] == ["mkdir", "open", "write", "fsync", "replace", "fsync"]
    for crash_at in range(1, len(disk.calls) + 1):
        write_bytes(path, b"old content")
        with disk_that_crashes(crash_at), pytest.raises(Crash):
            write_bytes(path, b"new")
        assert path.read_bytes() == (b"new" if crash_at == 6 else b"old content")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and [file.name for file in path.parent.iterdir()] == ["file"]
