"""One writer at a time, whoever it is and however the last one ended."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.disk import lock
from trainer.disk.lock import LOCK, writing
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError, StorageError
from trainer.teach import teach

ROOT = Path(__file__).parents[2]
UNET = ToyUNet().requires_grad_(False)
HOLD = """
import sys
from pathlib import Path
from trainer.disk.lock import writing
with writing(Path(sys.argv[1]), "teaching <cat>"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process of its own that writes in `tmp_path / "pets"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "pets")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def teach_fox(root):
    return teach(ToyBase(UNET), toy_concept("fox"), toy_settings(), ConceptSequence(root, ToyBase(UNET).fingerprint))


def test_the_second_process_is_told_who_writes_since_when(holder, tmp_path):
    with pytest.raises(ContinualLoraError) as caught:
        teach_fox(tmp_path / "pets")
    assert re.fullmatch(
        r'"pets" should be written by one run at a time\. '
        rf"Process {holder.pid} on `.+` is teaching <cat> in it since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\. "
        r"Wait until it is done or stop it, then run this again; or use another sequence or folder\.",
        str(caught.value),
    )
    assert [path.name for path in (tmp_path / "pets").iterdir()] == [LOCK]


def test_a_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / "pets" / LOCK).read_text())["process"] == holder.pid
    assert [task.token for task in teach_fox(tmp_path / "pets").tasks] == ["fox"]
    assert (tmp_path / "pets" / LOCK).read_bytes() == b""


def test_a_lock_that_is_given_back_is_free(holder, tmp_path):
    holder.stdin.close()
    assert holder.wait() == 0
    with writing(tmp_path / "pets", "teaching"):
        assert json.loads((tmp_path / "pets" / LOCK).read_text())["process"] == os.getpid()


def test_reading_needs_no_lock(tmp_path):
    line = teach_fox(tmp_path / "pets")
    with writing(tmp_path / "pets", "teaching <cat>"):
        opened = ConceptSequence.open(tmp_path / "pets")
        assert opened == line and set(opened.tokens()) == {"fox"} and opened.lora(opened.tasks[0])
        assert teach_fox(tmp_path / "pets") == line  # it is there already


def test_two_prompts_in_one_process(tmp_path):
    before = files_below(teach_fox(tmp_path / "pets").root)
    with writing(tmp_path / "pets", "teaching <cat>"):
        with pytest.raises(ContinualLoraError, match="This process is teaching <cat> in it since"):
            teach(ToyBase(UNET), toy_concept("dog", seed=1), toy_settings(), ConceptSequence.open(tmp_path / "pets"))
        with writing(tmp_path / "others", "teaching <dog>"):
            pass
    assert files_below(tmp_path / "pets") == before


def test_on_a_network_drive_the_system_lets_one_process_in_twice(tmp_path, monkeypatch):
    opened = []
    plain = os.open
    monkeypatch.setattr(lock, "_lock", lambda handle: None)
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: opened.append(args[0]) or plain(*args, **kwargs))
    with writing(tmp_path, "teaching <cat>"):
        opened.clear()
        with pytest.raises(ContinualLoraError, match="This process"), writing(tmp_path, "teaching <dog>"):
            pass
        assert tmp_path / LOCK not in opened  # closing it again would end the first one's lock


def test_what_happens_inside_does_not_keep_the_lock(tmp_path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), writing(tmp_path, "teaching"):
            raise error
    with writing(tmp_path, "teaching"):
        pass


def test_a_drive_without_locks_is_refused(tmp_path, monkeypatch):
    def unsupported(handle):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(lock, "_lock", unsupported)
    for _ in range(2):  # the first try keeps nothing
        facts = r"drive that can lock files.*not implemented.*Mount the drive"
        with pytest.raises(StorageError, match=facts), writing(tmp_path, "teaching"):
            pass


def test_a_lock_file_of_nonsense_is_written_over(tmp_path):
    (tmp_path / LOCK).write_bytes(b"\xff{")
    with writing(tmp_path, "teaching <cat>"):
        assert json.loads((tmp_path / LOCK).read_text())["doing"] == "teaching <cat>"
        (tmp_path / LOCK).write_bytes(b"\xff{")
        with pytest.raises(ContinualLoraError, match="Another run is writing it now"), writing(tmp_path, "more"):
            pass


@pytest.fixture
def windows(monkeypatch):
    """The module as Windows imports it, on a `msvcrt` that locks bytes from the position on, as the real one."""
    locked, calls = {}, []

    def locking(handle, mode, size):
        position, file = os.lseek(handle, 0, os.SEEK_CUR), os.fstat(handle).st_ino
        calls.append((mode, position, size))
        if mode == "unlock":
            assert locked.pop((file, position)) == handle
        elif (file, position) in locked:
            raise PermissionError(errno.EACCES, "Permission denied")
        else:
            locked[file, position] = handle

    fake = types.SimpleNamespace(locking=locking, LK_NBLCK="lock", LK_UNLCK="unlock")
    spec = importlib.util.spec_from_file_location("trainer.disk.lock_on_windows", lock.__file__)
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "msvcrt", fake)
        patch.setattr(sys, "platform", "win32")
        spec.loader.exec_module(module)
    assert not hasattr(module, "fcntl")
    return types.SimpleNamespace(writing=module.writing, module=module, locked=locked, calls=calls)


def test_windows_locks_one_byte_behind_the_text(windows, tmp_path):
    with windows.writing(tmp_path, "teaching <cat>"):
        assert json.loads((tmp_path / LOCK).read_text())["doing"] == "teaching <cat>" and len(windows.locked) == 1
        windows.module._held.clear()  # as another process
        with pytest.raises(ContinualLoraError, match="teaching <cat> in it since"), windows.writing(tmp_path, "more"):
            pass
    assert not windows.locked and (tmp_path / LOCK).stat().st_size == 0
    assert {position for _, position, _ in windows.calls} == {1 << 30} and {size for *_, size in windows.calls} == {1}
    with windows.writing(tmp_path, "teaching"):
        pass
