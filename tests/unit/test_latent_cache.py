"""Latents on disk: found again for the same pixels and autoencoder only, and the training is the same to the bit."""

import shutil
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.bases.fingerprint import autoencoder_fingerprint
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)


class Cancel(BaseException):
    pass


class Counting(ToyBase):
    """Counts the images that it encodes."""

    def __init__(self, name="averages of red", **kwargs):
        super().__init__(UNET, **kwargs)
        self.name, self.images = name, 0

    def encode_images(self, images):
        self.images += len(images)
        return super().encode_images(images)

    def autoencoder_fingerprint(self):
        return self.name


def run(root, base=None, concept=None, on_step=lambda record: None, **changes):
    settings = toy_settings(**{"recipe": "lora_ewc", "cache_latents": True, **changes})
    base = base or Counting()
    concept = concept or toy_concept("fox")
    return teach(base, concept, settings, ConceptSequence(root, base.fingerprint), on_step)


def stop_at_two(record):
    if record.step == 2 and record.phase == "train":
        raise Cancel


def images_encoded(root, **changes):
    base = Counting(**changes.pop("base", {}))
    run(root, base, **changes)
    return base.images


def test_a_resumed_training_needs_no_autoencoder(tmp_path):
    changes = {"flip": True, "rescale": True, "validation_every": 2, "validation_images": 1, "prior_images": 3}
    with pytest.raises(Cancel):
        run(tmp_path / "cut", on_step=stop_at_two, **changes)
    base, phases = Counting(), []
    run(tmp_path / "cut", base, on_step=lambda record: phases.append(record.phase), **changes)
    assert base.images == 0 and "prior" not in phases
    whole = run(tmp_path / "whole", cache_latents=False, **changes)
    found, expected = (files_below(tmp_path / name / "tasks") for name in ("cut", "whole"))
    assert found == expected and not (whole.root / "cache").exists()


def test_what_the_latents_depend_on_is_told_apart(tmp_path):
    assert images_encoded(tmp_path) == 3
    assert images_encoded(tmp_path, learning_rate=0.01, batch_size=1) == 0  # another training of the same images
    assert images_encoded(tmp_path, flip=True) == 6
    assert images_encoded(tmp_path, concept=toy_concept("fox", seed=1)) == 3
    assert images_encoded(tmp_path, base={"name": "another VAE"}, learning_rate=0.02) == 3
    captioned = replace(toy_concept("fox"), captions=["a", "b", "c"], digests=["1", "2", "3"])
    assert images_encoded(tmp_path, concept=captioned) == 0  # captions are no pixels


def test_an_emptied_cache_is_filled_again(tmp_path):
    run(tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    before = file.read_bytes()
    file.unlink()
    assert images_encoded(tmp_path, seed=1) == 3 and file.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_damaged_file_is_made_again(keep, tmp_path):
    run(tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    before = file.read_bytes()
    file.write_bytes(before[:keep])
    assert images_encoded(tmp_path, seed=1) == 3 and file.read_bytes() == before


def test_a_file_with_a_flipped_bit_is_made_again(tmp_path):
    run(tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert images_encoded(tmp_path, seed=1) == 3 and file.read_bytes() == before


def test_fingerprint_of_the_embedded_autoencoder(random_tiny_folder):
    base = TinyBase(random_tiny_folder)
    before = base.autoencoder_fingerprint()
    assert before == TinyBase(random_tiny_folder).autoencoder_fingerprint() != base.fingerprint
    assert autoencoder_fingerprint(base.weights.autoencoder.half()) != before  # it encodes to other bits
    base = TinyBase(random_tiny_folder)
    with torch.no_grad():
        next(base.weights.autoencoder.parameters()).mul_(1.1)
    assert base.autoencoder_fingerprint() != before


@pytest.mark.parametrize("name", ["sampling", "dtype", "clip"])
def test_what_the_base_would_draw_otherwise_is_not_taken_from_disk(tmp_path, name):
    class OtherClip(ToyBase):
        def encode_prompt(self, prompt, tokens):
            found = super().encode_prompt(prompt, tokens)
            return replace(found, context=2 * found.context)

    def phases(root, base):
        found = []
        run(root, base, on_step=lambda record: found.append(record.phase), prior_images=3)
        return found

    cache = tmp_path / "one" / "cache"
    assert "prior" in phases(cache.parent, ToyBase(UNET))
    other = OtherClip(UNET) if name == "clip" else ToyBase(UNET)
    if name == "sampling":
        other.changes = {"sampling": "another"}
    elif name == "dtype":
        other.dtype = torch.bfloat16
    for root, base, expected in ((tmp_path / "same", ToyBase(UNET), False), (tmp_path / "other", other, True)):
        shutil.copytree(cache, root / "cache")
        assert ("prior" in phases(root, base)) == expected
