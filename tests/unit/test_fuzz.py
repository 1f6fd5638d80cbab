"""Whatever is read works or is refused in three facts: a thousand generated inputs for each loader, the same each time.

No other exception may come out, and nothing may change on disk outside the folder that is written.
"""

import json
import os
import shutil
import warnings
from contextlib import suppress
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.adapters.factors import LoraFactors
from trainer.adapters.kohya import differences_from_kohya, from_kohya, kohya_prefixes, stems_from_kohya
from trainer.adapters.layers import cross_attention_layers
from trainer.adapters.layouts import DOWN, METADATA_KEY, UP, load_lora
from trainer.adapters.lora import LoraAdapter
from trainer.apply import apply_sequence
from trainer.concept import bare_token, check_token, concept_from_batch, load_concept, prepare
from trainer.disk.names import check_file_name, check_words
from trainer.disk.partial import restore_partial, save_partial
from trainer.disk.sequence import ConceptSequence, lines_on_disk
from trainer.errors import ContinualLoraError
from trainer.evaluation.record import newest_record, read_record, record_rows
from trainer.merging import MERGE_METHODS, merge
from trainer.merging.lines import merge_sequences
from trainer.prompts import base_prompt, split_tokens, token_of, without_tokens
from trainer.settings import TrainSettings
from trainer.teach import teach
from trainer.training import latent_cache
from trainer.training.state import TrainState

UNET = ToyUNet().requires_grad_(False)
BASE = ToyBase(UNET).fingerprint
LAYERS, NAMES = cross_attention_layers(UNET), kohya_prefixes(UNET)
thousand = settings(max_examples=1000, derandomize=True, database=None, deadline=None)
refused = suppress(ContinualLoraError)

words = st.text(st.characters(exclude_categories=()), max_size=20)
names = st.sampled_from(["fox", "CON", "../../x", "a/b", "x.", "\N{FOX FACE}", "x" * 300, "\ud83d", "a\0b", ""]) | words
numbers = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 0.5, -1, 1 << 70, float("nan")])
values = st.none() | st.booleans() | numbers | words
json_values = st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3)
)


@st.composite
def damaged(draw, content):
    """Bytes with a few changed, cut off, put in, or all others."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(changed) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "header"]))
        if how == "cut":
            del changed[place : draw(st.sampled_from([place + 1, len(changed)]))]
        elif how == "insert":
            changed[place:place] = draw(st.binary(max_size=8))
        elif changed:
            place = place % min(len(changed), 700) if how == "header" else place
            changed[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    line = ConceptSequence(tmp_path_factory.mktemp("fuzz") / "pets", BASE)
    for word in ("fox", "cat"):
        line = teach(ToyBase(UNET), toy_concept(word), toy_settings(steps=1, fisher_draws=1), line)
    return line


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A folder beside which everything is watched."""
    folder = tmp_path_factory.mktemp("scratch") / "inner"
    folder.mkdir()
    (folder.parent / "watched").write_text("as it was")
    yield folder
    assert {path.name for path in folder.parent.iterdir()} == {"inner", "watched"}
    assert (folder.parent / "watched").read_text() == "as it was"


def picture(mode, size, suffix, folder):
    path = folder / f"picture.{suffix}"
    Image.effect_noise(size, 80).convert(mode).save(path)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    kinds = [("RGB", "png"), ("RGBA", "png"), ("L", "png"), ("RGB", "jpg"), ("P", "bmp"), ("RGBA", "webp")]
    return [picture(mode, (size, 9), suffix, folder) for mode, suffix in kinds for size in (9, 12)]


@thousand
@given(data=st.data())
def test_concept_folder(data, pictures, scratch):
    for path in scratch.iterdir():
        path.unlink()
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(["a.png", "b.JPG", ".c.png", "d.webp", "e.bmp", "f.gif", "a.txt"]))
        good = data.draw(st.sampled_from(pictures))
        (scratch / name).write_bytes(good if data.draw(st.booleans()) else data.draw(damaged(good)))
    if data.draw(st.booleans()):
        (scratch / "a.txt").write_bytes(
            data.draw(st.binary(max_size=20) | words.map(lambda t: t.encode("utf-8", "replace")))
        )
    before = files_below(scratch)
    with refused, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on broken files
        concept = load_concept(
            scratch,
            token=data.draw(st.sampled_from(["fox", "<fox>"]) | names),
            class_noun=data.draw(st.just("animal") | names),
            name=data.draw(names),
            template=data.draw(st.sampled_from(["a <{token}>", "a {class_noun}", "{"]) | words),
            alpha=data.draw(st.sampled_from(["mask", "composite"])),
        )
        images, _ = prepare(concept, 8)
        assert images.shape[1:] == (3, 8, 8) and images.min() >= 0 and images.max() <= 1
        assert all(f"<{concept.token}>" in prompt for prompt in concept.prompts)
    assert files_below(scratch) == before


@thousand
@given(data=st.data())
def test_concept_of_a_batch(data):
    shape = data.draw(st.lists(st.sampled_from([0, 1, 3, 4, 8, 9, 30]), max_size=5) | st.just([1, 9, 8, 4]))
    images = torch.full(shape, data.draw(st.floats(width=32)))
    with refused:
        concept = concept_from_batch(
            images,
            token=data.draw(st.just("fox") | names),
            class_noun=data.draw(st.just("animal") | names),
            name=data.draw(names),
            alpha=data.draw(st.sampled_from(["mask", "composite"])),
        )
        assert prepare(concept, 8)[0].shape == (shape[0], 3, 8, 8)


def manifests(valid):
    """A valid manifest of which something was changed by hand."""
    text = json.dumps(valid)

    @st.composite
    def edited(draw):
        manifest = json.loads(text)
        for _ in range(draw(st.integers(1, 2))):
            place = manifest
            while isinstance(place, dict) and place and draw(st.integers(0, 3)):
                inner = place[draw(st.sampled_from(sorted(place)))]
                if not isinstance(inner, dict):
                    break
                place = inner
            keys = sorted(place) if isinstance(place, dict) else []
            key = draw(st.sampled_from(keys) if keys else words)
            if draw(st.integers(0, 4)) == 0:
                place.pop(key, None)
            else:
                place[key] = draw(json_values | names | st.sampled_from(sorted(valid["tasks"])))
        return json.dumps(manifest).encode()

    return edited() | json_values.map(lambda value: json.dumps(value).encode()) | damaged(text.encode())


def use(line):
    """Everything that reads a sequence."""
    with refused:
        opened = ConceptSequence.open(line.root)
        assert [task.index for task in opened.tasks] == list(range(1, len(opened.tasks) + 1))
        assert all(opened.folder(task).parent == opened.root / "tasks" for task in opened.tasks)
        opened.up_to(1).tokens()
        opened.log(opened.tasks[-1])
        opened.images(opened.tasks[-1])
        apply_sequence(ToyBase(UNET), opened)
    for read in (lambda: ConceptSequence.create(line.root, BASE), lambda: lines_on_disk(line.root), lambda: line.tasks):
        with refused:
            read()


@thousand
@given(data=st.data())
def test_manifest(data, taught):
    path = taught.root / "manifest.json"
    valid = path.read_bytes()
    before = files_below(taught.root.parent)
    try:
        path.write_bytes(data.draw(manifests(json.loads(valid))))
        use(taught)
    finally:
        path.write_bytes(valid)
    assert files_below(taught.root.parent) == before


@settings(thousand, max_examples=150)
@given(data=st.data())
def test_teaching_after_any_manifest_keeps_what_is_there(data, taught, scratch):
    root = scratch / "pets"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(taught.root, root)
    (root / "manifest.json").write_bytes(data.draw(manifests(json.loads((root / "manifest.json").read_bytes()))))
    before = files_below(root / "tasks")
    with refused:
        teach(
            ToyBase(UNET),
            toy_concept("dog"),
            toy_settings(steps=1, fisher_draws=1, recipe="lora"),
            ConceptSequence(root, BASE, taught.head),
        )
    after = files_below(root / "tasks")
    assert {name: after.get(name) for name in before} == before
    shutil.rmtree(root)


@thousand
@given(data=st.data())
def test_any_file_of_a_task(data, taught):
    """Of a sequence without digests, so that the bytes reach the loaders."""
    task = taught.tasks[-1]
    name = data.draw(
        st.sampled_from(["lora.safetensors", "methods.safetensors", "embeddings/cat.safetensors", "log.json"])
    )
    manifest, path = taught.root / "manifest.json", taught.folder(task) / name
    kept = manifest.read_bytes(), path.read_bytes()
    try:
        older = json.loads(kept[0])
        for stored in older["tasks"].values():
            stored["files"] = {}
        manifest.write_text(json.dumps(older))
        path.write_bytes(data.draw(damaged(kept[1])))
        use(taught)
        with refused:
            taught.method_state()
    finally:
        manifest.write_bytes(kept[0])
        path.write_bytes(kept[1])


@st.composite
def lora_files(draw):
    """Tensors under keys as a LoRA has them, more or less."""
    stems = [*LAYERS, "lora_unet_mid_block_attentions_0_attn2_to_k", "unet.x", ""]
    endings = [*DOWN, *UP, ".alpha", ".diff", ".weight", ""]
    tensors = {}
    for stem in draw(st.lists(st.sampled_from(stems), max_size=2)):
        for ending in draw(st.lists(st.sampled_from(endings), max_size=4)) + draw(
            st.sampled_from([[], [DOWN[0], UP[0]]])
        ):
            shape = draw(st.sampled_from([[], [2], [2, 3], [3, 2], [2, 2], [0, 3], [1, 2, 3]]))
            if ending in (*DOWN, *UP, ".alpha") and draw(st.integers(0, 3)):
                shape = [] if ending == ".alpha" else [2, 3] if ending in DOWN else [2, 2]
            kind = draw(st.sampled_from([torch.float32] * 4 + [torch.float16, torch.bfloat16, torch.int64, torch.bool]))
            number = draw(st.sampled_from([1.0, 0.0, -2.0, float("nan"), float("inf")]))
            tensors[stem + ending] = torch.full(shape, number).to(kind)
    alphas = st.sampled_from(['{"unet.lora_alpha": 4}', '{"unet.lora_alpha": "x"}', "[]", "{", "[" * 50_000]) | words
    metadata = {METADATA_KEY: draw(alphas).encode("utf-8", "replace").decode()} if draw(st.booleans()) else None
    return tensors, metadata


@thousand
@given(data=st.data())
def test_lora_of_any_tool(data, scratch):
    tensors, metadata = data.draw(lora_files())
    content = save(tensors, metadata)
    (scratch / "lora.safetensors").write_bytes(content if data.draw(st.booleans()) else data.draw(damaged(content)))
    with refused:
        lora = load_lora(scratch / "lora.safetensors", UNET)
        assert all(factors.delta.shape == (2, 3) for factors in lora.values())
    for read in (
        lambda: stems_from_kohya(tensors),
        lambda: from_kohya(tensors, LAYERS, NAMES),
        lambda: differences_from_kohya(tensors, LAYERS, NAMES),
    ):
        with refused:
            read()


@pytest.fixture(scope="module")
def saved_state(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "key.safetensors"
    with suppress(ZeroDivisionError):
        teach(
            ToyBase(UNET),
            toy_concept("dog"),
            toy_settings(),
            ConceptSequence(path.parent / "pets", BASE),
            lambda record: 1 / 0,
        )
    (state,) = path.parent.glob("pets/partial/*")
    return state.read_bytes()


@pytest.fixture(scope="module")
def adapter():
    return LoraAdapter(ToyBase(UNET).unet, 2, 2.0, torch.Generator().manual_seed(0))


@thousand
@given(data=st.data())
def test_state_of_an_interrupted_training(data, scratch, saved_state, adapter):
    state = TrainState(adapter, ToyBase(UNET).word_vectors("animal"), toy_settings())
    path = scratch / "key.safetensors"
    content = data.draw(st.just(saved_state) | damaged(saved_state))
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restore_partial(path, state)
    if caught:
        assert state.step == 0 and not path.exists()
        (kept,) = scratch.glob("key.safetensors.damaged")
        assert kept.read_bytes() == content
        kept.unlink()
    else:
        assert state.step == 1 and path.read_bytes() == content
        save_partial(path, state)
        assert load_file(path)["losses"].shape == (1,)


@thousand
@given(data=st.data())
def test_latents_on_disk(data, scratch):
    """Whatever happened to the file, the latents are those that would be made."""
    for path in scratch.iterdir():
        path.unlink()
    latents, made_from = torch.arange(24.0).view(2, 3, 2, 2), ["base", "images"]
    latent_cache.kept(scratch, made_from, lambda: latents, latents.device)
    (file,) = scratch.iterdir()
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    assert latent_cache.kept(scratch, made_from, lambda: latents, latents.device).equal(latents)


@thousand
@given(data=st.data())
def test_record_of_an_evaluation(data, taught):
    cell = {"after_task": 2, "concept_index": 1, "pictures": f"tasks/{taught.tasks[0].folder}/images", "mmd": 0.5}
    record = {"head": taught.head, "encoder": "another", "how": {}, "cells": [cell, dict(cell, after_task=1)]}
    for place in data.draw(st.lists(st.sampled_from([record, cell]), max_size=2)):
        name = data.draw(st.sampled_from([*place, "dc_accuracy"]))
        place[name] = data.draw(json_values | st.sampled_from([taught.tasks[0].key, "../..", "/", 2**70, 0.25]))
    content = json.dumps(record).encode()
    path = taught.root / "evaluation" / "reports" / "fuzz" / "evaluation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(damaged(content)) if data.draw(st.booleans()) else content)
    with refused:
        newest_record(taught)
    with refused:
        rows = record_rows(read_record(taught, "fuzz"), 1, 2)
        assert 1 <= len(rows) <= 2 and all(len(row["cells"]) == row["after_task"] for row in rows)
        images = [image for row in rows for found in row["cells"] if found for image in found["images"]]
        assert all((taught.root / image).is_file() for image in images)


@thousand
@given(st.dictionaries(st.sampled_from([item.name for item in fields(TrainSettings)]), values | names, max_size=4))
def test_settings(chosen):
    with refused:
        kept = TrainSettings(**chosen)
        assert kept.effective_alpha > 0 and kept.resolution % 8 == 0 and kept.steps >= 1


@thousand
@given(st.data())
def test_tokens_in_prompts(data):
    known = data.draw(st.lists(names, max_size=3))
    pieces = st.sampled_from([f"<{name}>" for name in known] + ["<", ">", "a "]) | words
    prompt = "".join(data.draw(st.lists(pieces, max_size=5)))
    cut = split_tokens(prompt, known)
    assert "".join(cut) == prompt and all(token_of(piece, known) in (None, *known) for piece in cut)
    assert isinstance(without_tokens(prompt, known), str) and base_prompt(prompt, data.draw(words))
    with refused:
        check_token(bare_token(prompt))
        assert os.fsencode(bare_token(prompt)).isascii()
    with refused:
        check_words(prompt, "prompt")
        assert prompt.encode().decode() == prompt


@thousand
@given(name=names)
def test_names_of_folders(name, scratch):
    with refused:
        folder = scratch / check_file_name(name, "sequence_name")
        folder.mkdir()
        assert [path.name for path in scratch.iterdir() if path.is_dir()] == [name]
        folder.rmdir()


@st.composite
def factors(draw):
    rank, rows, columns = (draw(st.sampled_from([2, 2, 2, 1, 3])) for _ in range(3))
    number = draw(st.sampled_from([0.5, 0.0, -1.0]))
    up = torch.full((rows, rank), number) + torch.arange(rank)
    return LoraFactors(torch.full((rank, columns), number), up, draw(st.sampled_from([0.0, 1.0, 2.0])))


@thousand
@given(data=st.data())
def test_merge(data):
    loras = data.draw(st.lists(st.dictionaries(st.sampled_from("ab"), factors(), max_size=2), max_size=3))
    weights = data.draw(st.lists(st.floats(), max_size=3) | st.just([1.0] * len(loras)))
    method = data.draw(st.sampled_from(MERGE_METHODS) | words)
    with refused:
        merged = merge(
            method,
            loras,
            weights,
            rank=data.draw(st.sampled_from([0, 1, 2]) | st.integers()),
            density=data.draw(st.sampled_from([0.5, 1.0]) | st.floats()),
            rng=data.draw(st.sampled_from([None, torch.Generator().manual_seed(0)])),
        )
        assert merged.keys() == set().union(*loras)


@thousand
@given(data=st.data())
def test_merge_of_tasks(data, taught):
    numbers = st.lists(st.integers(-1, 3) | st.integers(), max_size=3)
    with refused:
        merged = merge_sequences(
            [taught] * data.draw(st.sampled_from([1, 1, 2])),
            data.draw(numbers),
            data.draw(st.lists(st.sampled_from([1.0, 0.5]) | st.floats(), max_size=3)),
            data.draw(st.sampled_from(MERGE_METHODS)),
            rank=data.draw(st.sampled_from([0, 1])),
            density=data.draw(st.sampled_from([0.5]) | st.floats()),
            seed=data.draw(st.sampled_from([0]) | st.integers()),
        )
        assert merged.lora and set(merged.tokens) == {"fox", "cat"}
