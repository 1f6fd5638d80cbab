"""Aspect-ratio buckets: the shapes by hand, fair draws out of one bucket at a time, training and resuming."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, files_below
from trainer.bases.tiny.base import TinyBase
from trainer.concept import Concept, prepare
from trainer.disk.sequence import ConceptSequence
from trainer.images import cover
from trainer.losses.denoising import add_noise
from trainer.planning import task_record
from trainer.settings import TrainSettings
from trainer.teach import _Training, teach
from trainer.training.augment import LARGER, SMALLER
from trainer.training.buckets import Bucket, bucket_shape, drawn_batches

SHAPES = [(60, 60), (40, 70), (100, 60), (35, 56), (64, 64)]


class Cancel(BaseException):
    pass


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def concept(masked=False):
    """Five images: two squares, two wide ones, a tall one; with masks of their left halves."""
    images = [torch.rand(3, *shape, generator=rng(i)) for i, shape in enumerate(SHAPES)]
    masks = [None] * len(images)
    if masked:
        masks = [(torch.arange(width) < width // 2).float().expand(1, height, -1) for height, width in SHAPES]
    captions = [f"picture {i}" for i in range(len(images))]
    return Concept("fox", "fox", "animal", images, masks, captions, [str(i) for i in range(len(images))])


def settings(**changes):
    few = {"recipe": "lora", "steps": 4, "rank": 2, "learning_rate": 0.05, "fisher_draws": 4, "aspect_buckets": True}
    return TrainSettings(**{**few, **changes})


def made(root, base, chosen, of=None):
    sequence = ConceptSequence(root, base.fingerprint)
    of = of or concept()
    return _Training(base, of, chosen, sequence, task_record(sequence, of, chosen), lambda record: None)


@pytest.mark.parametrize(
    ("size", "resolution", "shape"),
    [
        ((300, 300), 512, (512, 512)),
        ((400, 420), 512, (512, 512)),
        ((400, 600), 512, (384, 640)),  # 1.5: log distance 0.105 to 640 / 384, 0.154 to 576 / 448
        ((576, 448), 512, (576, 448)),
        ((1080, 1920), 512, (384, 640)),
        ((100, 1000), 512, (256, 1024)),
        ((600, 400), 1024, (1216, 832)),  # 0.684, the next are 1280 / 768 and 1152 / 896
        ((50, 70), 64, (48, 80)),  # steps of 16
        ((8, 8), 8, (8, 8)),
    ],
)
def test_shapes_by_hand(size, resolution, shape):
    assert bucket_shape(*size, resolution) == shape


@pytest.mark.parametrize("resolution", [64, 512, 768, 1000, 1024])
def test_shapes_have_about_the_area_and_turn_with_the_image(resolution):
    for step in range(-20, 21):
        height, width = 1000, round(1000 * math.exp(step / 10))
        found = bucket_shape(height, width, resolution)
        assert 0.7 * resolution**2 < found[0] * found[1] <= resolution**2
        assert max(found) <= 2 * resolution and (found[0] % 8, found[1] % 8) == (0, 0)
        assert math.log(found[1] / found[0]) * step >= 0
        if found[0] != found[1] and abs(step) not in (7,):
            turned = bucket_shape(width, height, resolution)
            assert turned == found[::-1]


def test_cover_keeps_the_middle():
    image = torch.arange(6.0).expand(1, 4, 6) / 10
    assert torch.equal(cover(image, 4, 4), image[:, :, 1:5]) and torch.equal(cover(image, 4, 6), image)
    larger = cover(image, 8, 8)
    assert larger.shape == (1, 8, 8)
    torch.testing.assert_close(larger.mean(), image.mean(), rtol=1e-3, atol=1e-3)
    assert (larger.diff(dim=-1) >= 0).all() and larger.min() > 0.05 and larger.max() < 0.45  # the edges are cut off


class Buckets:
    """Three buckets whose latents say which image they are."""

    def __init__(self, sizes=(3, 1, 2)):
        self.list, first = [], 0
        for bucket, size in enumerate(sizes):
            numbers = torch.arange(first, first + size).float().view(size, 1, 1, 1)
            self.list.append(Bucket(numbers.expand(size, 1, 1, bucket + 1), None, first))
            first += size


def test_every_image_is_drawn_equally_often_and_batches_are_of_one_shape():
    counts, base = Counter(), ToyBase()
    for seed in range(1000):
        for indices, batch in drawn_batches(base, Buckets().list, 2, 3, rng(seed)):
            counts.update(indices.tolist())
            assert len(indices) == 3 and batch.x_t.shape[:3] == (3, 1, 1)
    assert len(counts) == 6
    assert all(abs(count - 1000) < 200 for count in counts.values()), counts  # a batch of one bucket is one draw


def test_indices_are_of_the_images_that_were_noised():
    base, seen = ToyBase(), set()
    for seed in range(20):
        generator = rng(seed)
        ((indices, batch),) = drawn_batches(base, Buckets().list, 1, 2, generator)
        again = rng(seed)
        image = int(torch.randint(6, (), generator=again))
        size = (3, 3, 3, 1, 2, 2)[image]
        other = int(torch.randint(size, (1,), generator=again)) + (0, 0, 0, 3, 4, 4)[image]
        t = torch.randint(1000, (2,), generator=again)
        noise = torch.randn(2, *batch.x_t.shape[1:], generator=again)
        assert indices.tolist() == [image, other]
        x_0 = indices.float().view(2, 1, 1, 1).expand_as(noise)
        torch.testing.assert_close(batch.x_t, add_noise(x_0, noise, base.scales(t)))
        assert torch.equal(generator.get_state(), again.get_state())
        seen.add(image)
    assert seen == set(range(6))


@pytest.mark.parametrize("masked", [False, True])
def test_images_go_to_their_bucket_with_mask_and_prompt(masked, tmp_path, tiny):
    of = concept(masked)
    data = made(tmp_path, tiny, settings(flip=True), of).data
    shapes = [tuple(bucket.latents.shape[-2:]) for bucket in data.buckets]
    assert shapes == [(6, 10), (8, 8), (10, 6)] and [bucket.first for bucket in data.buckets] == [0, 4, 8]
    order = [1, 3, 1, 3, 0, 4, 0, 4, 2, 2]  # each bucket's images, then their mirrored copies
    assert data.prompts == [of.prompts[i] for i in order]
    latents = [latent for bucket in data.buckets for latent in bucket.latents]
    masks = [mask for bucket in data.buckets for mask in (bucket.masks if masked else [None] * len(bucket.latents))]
    for place, (index, latent, mask) in enumerate(zip(order, latents, masks, strict=True)):
        picture = cover(of.images[index], *(8 * side for side in latent.shape[-2:]))
        flipped = place in (2, 3, 6, 7, 9)
        expected = tiny.encode_images((picture.flip(-1) if flipped else picture)[None])[0]
        torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-5)
        assert (mask is None) is not masked
        if masked:
            left, right = mask[0].split(latent.shape[-1] // 2, -1)
            assert (right if flipped else left).min() > 0.9 and (left if flipped else right).max() < 0.1
    squares, _ = data.plain
    torch.testing.assert_close(squares[:5], tiny.encode_images(prepare(of, 64)[0]), rtol=1e-4, atol=1e-5)


def test_rescaled_copies_stay_squares(tmp_path, tiny):
    data = made(tmp_path, tiny, settings(rescale=True)).data
    assert [len(bucket.latents) for bucket in data.buckets] == [2, 2 + 15, 1]
    words = (*SMALLER, *LARGER)
    assert [prompt.startswith(words) for prompt in data.prompts] == [False] * 4 + [True] * 15 + [False]
    assert len(data.latents) == 5


def passes(base):
    """The shape of x_t in each pass."""
    seen, plain = [], base.predict
    base.predict = lambda x_t, t, prompt: (seen.append(tuple(x_t.shape)), plain(x_t, t, prompt))[1]
    return seen


def run(root, folder, stop=0, **changes):
    def on_step(record):
        if record.step == stop and record.phase == "train":
            raise Cancel

    base, chosen = TinyBase(folder), settings(**changes)
    seen = passes(base)
    return teach(base, concept(), chosen, ConceptSequence(root, base.fingerprint), on_step), seen


def test_a_step_is_a_function_of_its_number_and_resumes_to_the_bit(tmp_path, random_tiny_folder):
    changes = {"steps": 6, "gradient_accumulation": 2, "prior_images": 1, "recipe": "lora_ewc", "validation_every": 3}
    done, seen = run(tmp_path / "whole", random_tiny_folder, **changes)
    shapes = {shape[-2:] for shape in seen}
    assert shapes == {(6, 10), (8, 8), (10, 6)}
    with pytest.raises(Cancel):
        run(tmp_path / "cut", random_tiny_folder, stop=3, **changes)
    run(tmp_path / "cut", random_tiny_folder, **changes)
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")
    lora = done.folder(done.tasks[0]) / "lora.safetensors"
    assert b'"ss_enable_bucket":"True"' in lora.read_bytes()


def test_the_fisher_sees_squares(tmp_path, random_tiny_folder):
    _, seen = run(tmp_path, random_tiny_folder, steps=1, recipe="lora_ewc")
    assert {shape[-2:] for shape in seen[1:]} == {(8, 8)} and len(seen) == 3  # a step; four draws, two at a time


def test_squares_alone_are_drawn_as_without_buckets(tmp_path, random_tiny_folder):
    squares = replace(concept(), images=[torch.rand(3, 64, 64, generator=rng(i)) for i in range(5)])
    theta = []
    for buckets in (False, True):
        base = TinyBase(random_tiny_folder)
        chosen = settings(aspect_buckets=buckets)
        sequence = ConceptSequence(tmp_path / str(buckets), base.fingerprint)
        done = teach(base, squares, chosen, sequence)
        theta.append(done.lora(done.tasks[0]))
    assert all(torch.equal(value, theta[1][name]) for name, value in theta[0].items())
