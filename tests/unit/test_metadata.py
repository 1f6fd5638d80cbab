"""What a LoRA file says of itself, and that the file is the same bytes every time."""

import hashlib
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from tests.toy import ToyBase, toy_settings
from trainer.disk.files import read_tensors, write_json, write_tensors
from trainer.disk.manifest import TaskRecord
from trainer.disk.metadata import lora_metadata, tensor_hash

TENSORS = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor(2.5), "half": torch.ones(3, dtype=torch.float16)}


def record(**changes):
    settings = toy_settings(**changes)
    words = {"concept": "My cat", "token": "cat", "class_noun": "animal", "prompt": "photo of a <cat> animal"}
    made = {"settings": asdict(settings), "recipe": settings.recipe, "image_digests": ["d"], "values": {}}
    return TaskRecord(key="k" * 64, parent="p" * 64, folder="02-cat-kkk", index=2, **words, **made)


def test_words_of_other_tools():
    metadata = lora_metadata(ToyBase(), record(alpha=1.0), ["fox"], TENSORS)
    assert all(isinstance(value, str) for value in metadata.values())
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "1.0",
        "ss_learning_rate": "0.05",
        "ss_steps": "4",
        "ss_seed": "0",
        "ss_resolution": "(8, 8)",
        "ss_training_comment": "Continual LoRA, recipe lora_ewc_dc, concept 2",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "toy/lora",
        "modelspec.resolution": "8x8",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "<fox>, <cat>",
        "continual_lora.base": ToyBase().fingerprint,
        "continual_lora.task": "k" * 64,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["continual_lora.tokens"]) == ["<fox>", "<cat>"]


def test_defaults_are_written_as_what_they_mean():
    metadata = lora_metadata(ToyBase(parameterization="v"), record(alpha=0.0, resolution=16), [], TENSORS)
    assert metadata["ss_network_alpha"] == "2.0" and metadata["ss_resolution"] == "(16, 16)"
    assert metadata["modelspec.prediction_type"] == "v"


def test_hash_is_of_the_bytes_in_the_order_of_the_names():
    content = b"".join(TENSORS[name].contiguous().numpy().tobytes() for name in ("a", "b", "half"))
    assert tensor_hash(TENSORS) == hashlib.sha256(content).hexdigest()
    metadata = lora_metadata(ToyBase(), record(), [], TENSORS)
    assert metadata["modelspec.hash_sha256"] == "0x" + tensor_hash(TENSORS)


@pytest.mark.parametrize("length", range(9))
def test_a_file_with_metadata_reads_back_exactly(length, tmp_path):
    metadata = {"ß": "ü" * length, 'a "quote"': "line\nbreak", "": ""}
    write_tensors(tmp_path / "file", TENSORS, metadata)
    back = load_file(tmp_path / "file")
    assert read_tensors(tmp_path / "file")[1] == metadata and set(back) == set(TENSORS)
    assert all(torch.equal(value, back[name]) and value.dtype == back[name].dtype for name, value in TENSORS.items())
    content = (tmp_path / "file").read_bytes()
    assert int.from_bytes(content[:8], "little") % 8 == 0  # as the format wants the tensors aligned


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    metadata = {f"key{i}": str(i) for i in range(20)}
    write_tensors(tmp_path / "first", TENSORS, metadata)
    for attempt in range(5):  # the safetensors library orders metadata anew at every call
        backwards = dict(reversed(list(TENSORS.items()))), dict(reversed(list(metadata.items())))
        write_tensors(tmp_path / f"{attempt}", *backwards)
        assert (tmp_path / f"{attempt}").read_bytes() == (tmp_path / "first").read_bytes()


def test_without_metadata_there_is_none(tmp_path):
    write_tensors(tmp_path / "file", TENSORS)
    assert read_tensors(tmp_path / "file")[1] == {}


def test_json_is_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Füchse", "n": [1, 2.5]})
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert json.loads(text) == {"name": "Füchse", "n": [1, 2.5]} and "Füchse" in text and text.endswith("}\n")
