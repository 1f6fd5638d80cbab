"""Files on their way to other machines: read once, unpacked once, never sent with a task."""

import pickle
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.sweep.toy import data_in
from trainer.errors import ContinualLoraError
from trainer.sweep.engines import Input, Place
from trainer.sweep.engines.ray_cluster import RayCluster
from trainer.sweep.parcels import Parcel, digest_of, pack, unpack


class Store:
    """Keeps copies and counts, as a cluster's would."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.fetched: list[int] = []

    def put(self, content: np.ndarray) -> int:
        self.kept.append(content.tobytes())
        return len(self.kept) - 1

    def get(self, place: int) -> np.ndarray:
        self.fetched.append(place)
        time.sleep(0.05)  # so that two that unpack at the same time meet
        return np.frombuffer(self.kept[place], np.uint8)


def contents(source: Input) -> dict[str, bytes]:
    return {file.relative_to(source.root.parent).as_posix(): file.read_bytes() for file in source.files}


def test_a_folder_arrives_as_it_was(tmp_path: Path) -> None:
    source, store = data_in(tmp_path), Store()
    (source.root / "not meant.txt").write_text("left out")
    parcel = pack(source, store.put)
    arrived = unpack(parcel, tmp_path / "cache", store.get)
    assert arrived.root == tmp_path / "cache" / digest_of(source) == tmp_path / "cache" / parcel.digest
    assert {name.split("/", 1)[1]: c for name, c in contents(arrived).items()} == {
        name.split("/", 1)[1]: c for name, c in contents(source).items()
    }
    assert sorted(path.name for path in arrived.root.rglob("*")) == ["deep", "empty.txt", "large.bin"]
    assert digest_of(arrived) == parcel.digest


def test_a_single_file_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(b"weights")
    store = Store()
    parcel = pack(Input.of_file(tmp_path / "base.safetensors"), store.put)
    arrived = unpack(parcel, tmp_path / "cache", store.get)
    assert arrived.root.name == "base.safetensors" and arrived.root.read_bytes() == b"weights"


@pytest.mark.parametrize("runs", [1, 5])
def test_it_is_unpacked_once_however_many_want_it(tmp_path: Path, runs: int) -> None:
    source, store, found = data_in(tmp_path), Store(), []
    parcel = pack(source, store.put)
    # What a killed one left behind.
    (tmp_path / "cache" / f"{parcel.digest}.new").mkdir(parents=True)
    (tmp_path / "cache" / f"{parcel.digest}.new" / "stale").touch()

    def want() -> None:
        found.append(unpack(parcel, tmp_path / "cache", store.get))

    wanting = [threading.Thread(target=want) for _ in range(runs)]
    for each in wanting:
        each.start()
    for each in wanting:
        each.join()
    assert sorted(store.fetched) == [0, 1]
    assert len(found) == runs and len({arrived.root for arrived in found}) == 1
    assert not (found[0].root / "stale").exists()
    unpack(parcel, tmp_path / "cache", store.get)
    assert sorted(store.fetched) == [0, 1]


def test_a_parcel_is_small_whatever_is_in_it(tmp_path: Path) -> None:
    parcel = pack(data_in(tmp_path), Store().put)
    assert isinstance(parcel, Parcel) and len(pickle.dumps(parcel)) < 500


def test_another_content_or_name_is_another_parcel(tmp_path: Path) -> None:
    source = data_in(tmp_path)
    before = digest_of(source)
    assert digest_of(Input(source.root, source.files[::-1])) == before
    source.files[1].write_bytes(b"x")
    changed = digest_of(source)
    renamed = source.files[1].rename(source.root / "other.txt")
    assert len({before, changed, digest_of(Input(source.root, (source.files[0], renamed)))}) == 3


def test_a_task_is_given_references_and_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own means, asked for as they should be; no byte of a file is among the arguments."""
    store, options, sent = Store(), {}, []

    class Task:
        def __init__(self, function: object) -> None:
            self.function = function

        def remote(self, *arguments: object) -> int:
            sent.append(arguments)
            return len(sent)

    def remote(**asked: object) -> type[Task]:
        options.update(asked)
        return Task

    ray = SimpleNamespace(
        init=lambda *_, **__: None,
        shutdown=lambda: options.update(ended=True),
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 4, "GPU": 1}}, {"Alive": False, "Resources": {"CPU": 64}}],
        put=store.put,
        remote=remote,
        wait=lambda references, num_returns: (references[-num_returns:], references[:-num_returns]),
        get=lambda reference: f"result {reference}",
        get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "home"),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    place = Place({"data": data_in(tmp_path)}, tmp_path)
    found = list(RayCluster("far:1", cpus=2, gpus=0.5).results(len, ["a", "b"], place))
    assert found == [("b", "result 2"), ("a", "result 1")]
    assert options == {"num_cpus": 2, "num_gpus": 0.5, "max_calls": 1, "max_retries": -1, "ended": True}
    assert [job for _, job, _ in sent] == ["a", "b"] and len(store.kept) == 2  # both files, once
    assert all(len(pickle.dumps(arguments)) < 1500 for arguments in sent)
    with pytest.raises(ContinualLoraError, match=r"the 5 cores and 0 GPUs that a run takes\. .* have 4 and 1\."):
        list(RayCluster("far:1", cpus=5).results(len, ["a"], place))
