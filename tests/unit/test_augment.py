"""Copies of the images: where they lie, what counts, what they are called, and that nothing happens unasked."""

from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.concept import concept_from_batch, prepare
from trainer.disk.sequence import ConceptSequence
from trainer.planning import task_record
from trainer.teach import _Training, teach
from trainer.training import augment
from trainer.training.augment import LARGER, SMALLER, paste, rescaled_copies, training_pool

RED = torch.tensor([1.0, 0.0, 0.0])
PROMPT = "photo of a <fox> animal"


def concept_of(*images, alpha="composite", captions=None):
    """A concept of pictures [H, W, 3 or 4] of one size."""
    made = concept_from_batch(torch.stack(images), token="fox", class_noun="animal", alpha=alpha)
    return replace(made, captions=captions) if captions else made


def solid(side, opacity=1.0):
    return torch.cat([RED, torch.tensor([opacity])]).expand(side, side, 4)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn_as(monkeypatch, *numbers):
    """Let the draws be these: side, top and left of each smaller copy, then side and words of the enlarged one."""
    left = list(numbers)

    def draw(low, high, rng):
        assert low <= left[0] <= high
        return left.pop(0)

    monkeypatch.setattr(augment, "_draw", draw)


def filled(side, box, inside, outside):
    """[side, side] of one value with a box (top, left, height, width) of another."""
    top, left, height, width = box
    canvas = torch.full((side, side), outside)
    canvas[top : top + height, left : left + width] = inside
    return canvas


def test_paste_by_hand():
    pasted = paste(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), 4, 1, 2, 0.5)
    assert pasted.tolist() == [[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1, 2], [0.5, 0.5, 3, 4], [0.5, 0.5, 0.5, 0.5]]]


def test_smaller_copies_lie_where_they_were_drawn_and_only_they_count(monkeypatch):
    drawn_as(monkeypatch, 6, 14, 0, 12, 3, 8, 24, 1)
    far, small, close = rescaled_copies(concept_of(solid(20)), 20, rng())
    for copy, box in ((far, (14, 0, 6, 6)), (small, (3, 8, 12, 12))):
        for channel, value in enumerate(RED.tolist()):
            torch.testing.assert_close(copy.image[channel], filled(20, box, value, 0.5))
        torch.testing.assert_close(copy.mask[0], filled(20, box, 1.0, 0.0))
    assert [copy.mask.sum().item() for copy in (far, small, close)] == pytest.approx([36, 144, 400])
    assert [copy.prompt for copy in (far, small, close)] == [
        f"a far away {PROMPT}",
        f"very small {PROMPT}",
        f"close up {PROMPT}",
    ]


def test_the_enlarged_copy_is_the_middle_at_its_scale(monkeypatch):
    # From 20 to 24 pixels, 2 cut off each side: pixel i of the result has its center at (i + 2.5) 20/24 - 0.5 of the
    # input, and a cubic kernel keeps a linear ramp.
    drawn_as(monkeypatch, 6, 0, 0, 6, 0, 0, 24, 0)
    ramp = (torch.arange(20.0) / 40).expand(20, -1)[:, :, None].expand(-1, -1, 3)
    close = rescaled_copies(concept_of(ramp), 20, rng())[2]
    expected = ((torch.arange(20) + 2.5) * 20 / 24 - 0.5) / 40
    torch.testing.assert_close(close.image[0, 10, 2:-2], expected[2:-2], rtol=0, atol=1e-5)
    assert close.prompt == f"zoomed in {PROMPT}"


def test_the_enlarged_copy_keeps_detail_that_the_image_at_its_size_has_lost():
    # A checkerboard of one pixel, 24 wide: at side 20 it is nearly gray, at side 24 it is there.
    board = ((torch.arange(24)[:, None] + torch.arange(24)) % 2).float()[:, :, None].expand(-1, -1, 3)
    plain, copies = prepare(concept_of(board), 20)[0][0], rescaled_copies(concept_of(board), 20, rng(2))
    assert copies[2].image.std() > plain.std()


def test_ranges_of_size_and_place():
    sides, corners, larger, words = set(), set(), set(), set()
    for seed in range(200):
        *smaller, close = rescaled_copies(concept_of(solid(20)), 20, rng(seed))
        for copy in smaller:
            rows, columns = copy.mask[0].any(1).nonzero().flatten(), copy.mask[0].any(0).nonzero().flatten()
            assert len(rows) == len(columns) and copy.mask.sum().item() == pytest.approx(len(rows) ** 2)
            sides.add(len(rows))
            corners |= {("top", rows.min().item()), ("bottom", rows.max().item()), ("left", columns.min().item())}
        words.add(close.prompt.removesuffix(PROMPT))
        larger.add(close.image.shape)
    assert sides == set(range(6, 13))  # 20 / 3 to 20 * 3 / 5
    assert {("top", 0), ("bottom", 19), ("left", 0)} <= corners
    assert words == set(LARGER) and larger == {(3, 20, 20)}


def test_alpha_masks_are_rescaled_with_their_image(monkeypatch):
    drawn_as(monkeypatch, 10, 2, 5, 8, 0, 12, 24, 0, *[6, 0, 0] * 2, 24, 0)
    half = solid(20).clone()
    half[:, 10:, 3] = 0
    far, small, close, *_ = rescaled_copies(concept_of(half, solid(20, 0.25), alpha="mask"), 20, rng())
    ones = (far.mask[0, 2:12, 5:8], small.mask[0, :8, 12:15], close.mask[0, :, :7])
    nothing = (far.mask[0, :2], far.mask[0, 12:], far.mask[0, :, 12:], small.mask[0, :, 18:], close.mask[0, :, 13:])
    assert min(part.min().item() for part in ones) == pytest.approx(1) and max(part.max() for part in nothing) == 0
    assert far.mask.sum().item() == pytest.approx(50, abs=1)  # the left half of 10 x 10


def test_an_even_opacity_stays_what_it_is(monkeypatch):
    drawn_as(monkeypatch, 6, 14, 0, 12, 3, 8, 28, 1)
    far, small, close = rescaled_copies(concept_of(solid(20, 0.25), alpha="mask"), 20, rng())
    for copy, count in ((far, 36), (small, 144), (close, 400)):
        assert copy.mask.sum().item() == pytest.approx(0.25 * count, rel=1e-5)


def test_a_copy_with_nothing_inside_its_mask_is_left_out():
    edge = solid(20, 0.0).clone()
    edge[:, 0, 3] = 1  # the first column is not in the middle of any enlarged copy
    pool = training_pool(concept_of(edge, solid(20), alpha="mask"), 20, flip=False, rescale=True, rng=rng())
    assert pool.prompts[2:] == [
        *(words + PROMPT for words in SMALLER),
        *(words + PROMPT for words in SMALLER),
        pool.prompts[-1],
    ]
    assert len(pool.images) == len(pool.masks) == 2 + 2 + 3 and pool.masks.amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("flip", [False, True])
def test_without_rescaling_nothing_is_drawn_and_flips_are_exact_and_appended(flip):
    concept = concept_of(*torch.rand(3, 16, 24, 4, generator=rng()), alpha="mask", captions=["one <fox>", "", "two"])
    draws = rng()
    before, pool = draws.get_state(), training_pool(concept, 16, flip=flip, rescale=False, rng=draws)
    images, masks = prepare(concept, 16)
    assert torch.equal(draws.get_state(), before)
    assert pool.images.shape == ((6 if flip else 3), 3, 16, 16) and pool.num_plain == len(pool.images)
    assert torch.equal(pool.images[:3], images) and torch.equal(pool.masks[:3], masks)
    assert pool.prompts == concept.prompts * (2 if flip else 1)
    if flip:
        assert torch.equal(pool.images[3:], images.flip(-1)) and torch.equal(pool.masks[3:], masks.flip(-1))
    opaque = replace(concept, masks=[None] * 3)
    assert training_pool(opaque, 16, flip=flip, rescale=False, rng=draws).masks is None


def test_flips_and_rescaled_copies_combine():
    concept = concept_of(*torch.rand(2, 16, 24, 3, generator=rng()), captions=["a sleeping <fox>", ""])
    pool = training_pool(concept, 16, flip=True, rescale=True, rng=rng())
    plain = training_pool(concept, 16, flip=False, rescale=True, rng=rng())
    assert len(pool.images) == len(pool.masks) == len(pool.prompts) == 2 * 8 and pool.num_plain == 4
    assert torch.equal(pool.images[4:10], plain.images[2:]) and torch.equal(
        pool.images[10:], pool.images[4:10].flip(-1)
    )
    assert torch.equal(pool.masks[10:], plain.masks[2:].flip(-1)) and pool.masks[:4].min() == 1
    assert pool.prompts[:4] == ["a sleeping <fox>", PROMPT] * 2
    assert pool.prompts[4:6] == ["a far away a sleeping <fox>", "very small a sleeping <fox>"]
    assert pool.prompts[10:] == pool.prompts[4:10] and all("<fox>" in prompt for prompt in pool.prompts)


def test_the_same_generator_gives_the_same_copies():
    concept = concept_of(*torch.rand(2, 16, 16, 3, generator=rng()))
    one, same, other = (training_pool(concept, 16, flip=False, rescale=True, rng=rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images) and one.prompts == same.prompts
    assert not torch.equal(one.images, other.images)


def test_copies_of_a_batch_made_in_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        concept = concept_of(*torch.rand(2, 16, 16, 4), alpha="mask")
    pool = training_pool(concept, 16, flip=True, rescale=True, rng=rng())
    assert not pool.images.is_inference() and not pool.masks.is_inference()


# In a training


def training_of(tmp_path, concept, **changes):
    base, settings = ToyBase(), toy_settings(**changes)
    sequence = ConceptSequence.create(tmp_path, base.fingerprint)
    record = task_record(sequence, concept, settings)
    return _Training(base, concept, settings, sequence, record, lambda record: None)


def test_latents_and_masks_of_a_training_by_hand(monkeypatch, tmp_path):
    # The toy's latents are the means of the left and the right half of the red channel, as 2 x - 1.
    drawn_as(monkeypatch, 4, 0, 4, 2, 6, 3, 10, 0)
    training = training_of(tmp_path, concept_of(solid(8)[..., :3]), rescale=True)
    right = 2 * (0.5 + 16 / 32 * 0.5) - 1  # 16 of 32 pixels are red, the others gray
    torch.testing.assert_close(
        training.data.latents[:, 0, 0], torch.tensor([[1, 1], [0, right], [2 / 32, 2 / 32], [1, 1]])
    )
    assert training.data.masks[:, 0, 0].tolist() == [[1, 1], [0, 0.5], [2 / 32, 2 / 32], [1, 1]]
    seen = training._trained_task()
    assert torch.equal(seen.latents, training.data.latents[:1]) and torch.equal(seen.masks, training.data.masks[:1])


def test_a_training_without_copies_sees_the_images_and_no_masks(tmp_path):
    training = training_of(tmp_path, toy_concept("fox"))
    assert len(training.data.latents) == len(training._trained_task().latents) == 3 and training.data.masks is None
    assert training.data.prompts == [PROMPT] * 3


def test_each_copy_is_trained_under_its_own_prompt(tmp_path):
    training = training_of(tmp_path, concept_of(solid(8)[..., :3], captions=["<fox>"]), rescale=True)
    contexts = training.encode.of_images(training.data.prompts)(torch.tensor([0, 1, 2]), torch.Generator()).context
    for context, prompt in zip(contexts, ("<fox>", "a far away <fox>", "very small <fox>"), strict=True):
        assert torch.equal(context, training.denoiser.encode_prompt(prompt, {"fox": training.state.token}).context[0])


def test_a_training_on_copies_is_the_same_every_time_and_another_one(tmp_path):
    unet = ToyUNet().requires_grad_(False)

    def taught(name, **changes):
        sequence = ConceptSequence.create(tmp_path / name, ToyBase(unet).fingerprint)
        return teach(ToyBase(unet), toy_concept("fox"), toy_settings(flip=True, **changes), sequence)

    one, _, plain = taught("one", rescale=True), taught("same", rescale=True), taught("plain")
    assert files_below(tmp_path / "one") == files_below(tmp_path / "same")
    before = plain.lora(plain.tasks[0])
    assert any(not torch.equal(value, before[name]) for name, value in one.lora(one.tasks[0]).items())
    assert torch.equal(one.images(one.tasks[0]), plain.images(plain.tasks[0]))  # without copies
