"""What a training draws its batches from: the concept's images, mirrored and rescaled if that is asked for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..concept import Concept, prepare
from ..images import cover, crop_middle, fit
from .buckets import bucket_shape

SMALLER = ("a far away ", "very small ")  # one copy each
LARGER = ("zoomed in ", "close up ")  # one copy, under one of them
GRAY = 0.5


@dataclass(frozen=True)
class Sample:
    """One picture to train on.

    Attributes:
        image: [3, H, W] in 0..1.
        mask: [1, H, W] in 0..1, where the loss counts, or None for everywhere.
        prompt: what it is trained under.
    """

    image: Tensor
    mask: Tensor | None
    prompt: str

    def mirrored(self) -> "Sample":
        """Left and right exchanged."""
        return Sample(self.image.flip(-1), None if self.mask is None else self.mask.flip(-1), self.prompt)


@dataclass(frozen=True)
class Pool:
    """All pictures of a training.

    Attributes:
        images: [N, 3, H, W] in 0..1, squares of side R but for `bucket_pools`.
        masks: [N, 1, H, W] in 0..1, or None if no picture has one.
        prompts: of each picture.
        num_plain: how many come first that show the concept as it was given, mirrored or not; copies of another size
            follow.
    """

    images: Tensor
    masks: Tensor | None
    prompts: list[str]
    num_plain: int


def training_pool(concept: Concept, resolution: int, flip: bool, rescale: bool, rng: torch.Generator) -> Pool:
    """The concept's images as `prepare` makes them, and whatever copies of them are asked for.

    Args:
        concept: its images may have any size.
        resolution: R, the side of the square.
        flip: also a mirrored copy of each picture, rescaled ones included.
        rescale: also the copies of `rescaled_copies`.
        rng: draws sizes, places and words; nothing without `rescale`.
    """
    images, masks = prepare(concept, resolution)
    each_mask = [None] * len(images) if masks is None else list(masks)
    plain = [Sample(*parts) for parts in zip(images, each_mask, concept.prompts, strict=True)]
    copies = rescaled_copies(concept, resolution, rng) if rescale else []
    if flip:
        plain, copies = ([*samples, *(sample.mirrored() for sample in samples)] for samples in (plain, copies))
    return _pool([*plain, *copies], len(plain))


def bucket_pools(concept: Concept, resolution: int, flip: bool, rescale: bool, rng: torch.Generator) -> list[Pool]:
    """The same with each image at the shape of its bucket: one pool a shape, in the order of the shapes.

    The copies of `rescaled_copies` stay squares.
    """
    plain = []
    for image, mask, prompt in zip(concept.images, concept.masks, concept.prompts, strict=True):
        height, width = bucket_shape(image.shape[-2], image.shape[-1], resolution)
        counted = None if mask is None else cover(mask, height, width)
        plain.append(Sample(cover(image, height, width), counted, prompt))
    copies = rescaled_copies(concept, resolution, rng) if rescale else []
    samples = [*plain, *copies]
    if flip:
        samples += [sample.mirrored() for sample in samples]
    shapes = sorted({sample.image.shape[-2:] for sample in samples})
    grouped = [[sample for sample in samples if sample.image.shape[-2:] == shape] for shape in shapes]
    return [_pool(group, len(group)) for group in grouped]


def _pool(samples: list[Sample], num_plain: int) -> Pool:
    masked = [torch.ones_like(sample.image[:1]) if sample.mask is None else sample.mask for sample in samples]
    return Pool(
        images=torch.stack([sample.image for sample in samples]),
        masks=None if all(sample.mask is None for sample in samples) else torch.stack(masked),
        prompts=[sample.prompt for sample in samples],
        num_plain=num_plain,
    )


def rescaled_copies(concept: Concept, resolution: int, rng: torch.Generator) -> list[Sample]:
    """Two smaller copies and an enlarged one of each image, under prompts that say so.

    A smaller copy has a side uniform in R/3..3R/5 and lies at a uniform place on gray; only it counts in the loss. An
    enlarged one has a side uniform in 6R/5..7R/5 and is cut down to its middle. Alpha masks go along; a copy with
    nothing inside its mask is left out.

    Source: Kumari et al., arXiv 2212.04488; the ranges and words are those of the authors' code. It draws a
    fresh copy at every step, and some of 3R/5..R under the plain prompt; here latents are encoded once a task, so the
    copies are too, and next to an image itself that middle range adds little. It also takes a latent's width off the
    edge of a smaller copy's mask; here a latent on the edge counts by its share.

    Args:
        concept: its images may have any size.
        resolution: R, the side of the square.
        rng: draws sizes, places and words.
    """
    copies: list[Sample] = []
    for image, mask, prompt in zip(concept.images, concept.masks, concept.prompts, strict=True):
        opacity = torch.ones_like(image[:1]) if mask is None else mask
        for words in SMALLER:
            side = _draw(resolution // 3, 3 * resolution // 5, rng)
            top, left = (_draw(0, resolution - side, rng) for _ in range(2))
            pasted, counted = (
                paste(fit(picture, side), resolution, top, left, fill)
                for picture, fill in ((image, GRAY), (opacity, 0.0))
            )
            copies.append(Sample(pasted, counted, words + prompt))
        side = _draw(6 * resolution // 5, 7 * resolution // 5, rng)
        enlarged, counted = (crop_middle(fit(picture, side), resolution) for picture in (image, opacity))
        copies.append(Sample(enlarged, counted, LARGER[_draw(0, 1, rng)] + prompt))
    return [copy for copy in copies if copy.mask is not None and copy.mask.any()]


def paste(picture: Tensor, resolution: int, top: int, left: int, fill: float) -> Tensor:
    """[C, s, s] on a canvas [C, R, R] of one value, its upper left corner at (top, left)."""
    canvas = picture.new_full((len(picture), resolution, resolution), fill)
    canvas[:, top : top + picture.shape[-2], left : left + picture.shape[-1]] = picture
    return canvas


def _draw(low: int, high: int, rng: torch.Generator) -> int:
    """Uniform in low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))
