"""The encoder of open_clip against open_clip itself, with a small model of random weights."""

import logging
import socket
import sys

import huggingface_hub
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip import factory, pretrained
from safetensors.torch import save_file

from trainer.errors import ContinualLoraError
from trainer.metrics import text_similarity
from trainer.metrics.features import TextImageEncoder
from trainer.metrics.features.open_clip import OpenClip

SMALL = "ViT-small-test"
QUICK = "ViT-small-test-quickgelu"
TAG = "random_weights"
REPOSITORY = "somebody/small-test"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PROMPTS = ("a photo of a dog", "a red cup on a table")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Two small architectures, a tag for each, an empty cache, and no network."""

    def refuse(*arguments, **settings):
        raise AssertionError("a socket was opened")

    tags = {TAG: pretrained._pcfg(hf_hub=f"{REPOSITORY}/", mean=MEAN, std=STD, quick_gelu=True)}
    for name, config in ((SMALL, CONFIG), (QUICK, {**CONFIG, "quick_gelu": True})):
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
        monkeypatch.setitem(pretrained._PRETRAINED, name, tags)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def network(architecture=SMALL, seed=0):
    """Open_clip's own, with weights far enough from zero for features to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = open_clip.create_model(architecture, pretrained=None, pretrained_text=False)
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made.train(False).requires_grad_(False)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "small.safetensors"
    save_file(network().state_dict(), path)
    return path


def cache(tmp_path, source, name="open_clip_model.safetensors"):
    """A file where `hf download` would have put it."""
    folder = tmp_path / "cache" / f"models--{REPOSITORY.replace('/', '--')}"
    for part in ("refs", "snapshots/abc"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / name).write_bytes(source.read_bytes())


def photos(count, height=32, width=32):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def normal(images, mean, std):
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_it_is_open_clip(weights):
    encoder: TextImageEncoder = OpenClip(weights, SMALL)
    own, images = network(), photos(5)
    pixels = normal(images, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    expected = F.normalize(own.encode_image(pixels), dim=1)
    assert not torch.allclose(expected[0], expected[4], atol=1e-2)
    torch.testing.assert_close(encoder(images), expected)
    for prompt in PROMPTS:
        text = F.normalize(own.encode_text(open_clip.get_tokenizer(SMALL)([prompt])), dim=1)
        torch.testing.assert_close(encoder.encode_text(prompt), text[0])
        cosines = 100 * (expected @ text[0]).mean()
        assert float(text_similarity(encoder.encode_text(prompt), encoder(images))) == pytest.approx(float(cosines))
    assert not torch.allclose(*(encoder.encode_text(prompt) for prompt in PROMPTS), atol=1e-2)


def test_it_says_what_it_is(weights, tmp_path):
    cache(tmp_path, weights)
    assert OpenClip(weights, SMALL).name == f"CLIP {SMALL} (open_clip, small.safetensors)"
    assert OpenClip(str(weights), SMALL).name == f"CLIP {SMALL} (open_clip, small.safetensors)"
    assert OpenClip(TAG, SMALL).name == f"CLIP {SMALL} (open_clip, {TAG})"


def test_other_shapes_are_squeezed(weights):
    encoder, images = OpenClip(weights, SMALL), photos(2, 48, 90)
    small = F.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(encoder(images), encoder(small))


def test_more_images_than_one_batch_stay_in_order(weights):
    encoder, images = OpenClip(weights, SMALL), photos(70)
    together = encoder(images)
    assert together.shape == (70, 16)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(70))
    torch.testing.assert_close(together[40:], torch.cat([encoder(image[None]) for image in images[40:]]))


def test_a_tag_in_the_cache_knows_mean_deviation_and_activation(weights, tmp_path):
    cache(tmp_path, weights)
    images = photos(3)
    expected = F.normalize(network(QUICK).encode_image(normal(images, MEAN, STD)), dim=1)
    torch.testing.assert_close(OpenClip(TAG, SMALL)(images), expected)
    assert not torch.allclose(OpenClip(weights, SMALL)(images), expected, atol=1e-3)


def test_a_tag_that_names_its_file_means_the_safetensors_beside_it(weights, tmp_path, monkeypatch):
    named = {TAG: pretrained._pcfg(hf_hub=f"{REPOSITORY}/pytorch_model.bin")}
    monkeypatch.setitem(pretrained._PRETRAINED, SMALL, named)
    cache(tmp_path, weights, "pytorch_model.bin")
    with pytest.raises(ContinualLoraError, match=r"`pytorch_model\.safetensors` of `somebody/small-test` is not there"):
        OpenClip(TAG, SMALL)


def test_a_tag_out_of_the_cache_is_not_downloaded():
    message = r"never downloaded\..*is not there\..*Run `hf download somebody/small-test open_clip_model\.safetensors`"
    with pytest.raises(ContinualLoraError, match=message):
        OpenClip(TAG, SMALL)
    with pytest.raises(ContinualLoraError, match=r"hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K open_clip_model"):
        OpenClip("laion2b_s34b_b79k")


def test_an_unknown_tag_names_the_known_ones():
    with pytest.raises(ContinualLoraError, match=rf"`nothing` is neither; the tags are: {TAG}\..*Give the path"):
        OpenClip("nothing", SMALL)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ""])
def test_other_formats_are_refused_unopened(weights, tmp_path, suffix):
    path = weights.rename(tmp_path / f"small{suffix}")
    with pytest.raises(ContinualLoraError, match=r"other formats can run code.*is not one\..*Give the path"):
        OpenClip(path, SMALL)
    with pytest.raises(ContinualLoraError, match="other formats can run code"):
        OpenClip(str(path), SMALL)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ContinualLoraError, match=r"must be a \.safetensors file.*does not exist\..*Give the path"):
        OpenClip(tmp_path / "none.safetensors", SMALL)


def test_a_broken_file_is_refused(tmp_path):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ContinualLoraError, match=r"with its names and shapes\. `broken\.safetensors` cannot be read"):
        OpenClip(path, SMALL)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_of_another_architecture_are_refused(tmp_path, change):
    state, path = network().state_dict(), tmp_path / "other.safetensors"
    if change == "missing":
        del state["visual.proj"]
    elif change == "unknown":
        state["visual.other"] = torch.ones(1)
    else:
        state["visual.proj"] = torch.ones(64, 8)
    save_file(state, path)
    with pytest.raises(ContinualLoraError, match=r"In `other\.safetensors` 1 are .* the first `visual\.\w+`\. Give"):
        OpenClip(path, SMALL)


@pytest.mark.parametrize(
    ("architecture", "came"),
    [
        ("ViT-none", "is none of them"),
        ("hf-hub:somebody/some-model", "is none of them"),
        ("ViT-B-16-SigLIP", "needs one"),
        ("roberta-ViT-B-32", "needs one"),
    ],
)
def test_an_architecture_that_the_hub_would_have_to_explain_is_refused(weights, architecture, came):
    with pytest.raises(ContinualLoraError, match=rf"no tokenizer from the hub\. `{architecture}` {came}\. Take"):
        OpenClip(weights, architecture)


def test_a_missing_package_says_what_to_install(weights, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ContinualLoraError, match=r"need its package\..*open_clip.*pip install open_clip_torch"):
        OpenClip(weights, SMALL)


def test_loading_leaves_the_global_generator_and_the_log_alone(weights, caplog):
    state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        OpenClip(weights, SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert not caplog.records
    assert not logging.getLogger().filters
