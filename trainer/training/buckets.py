"""Images at their own aspect ratio: one bucket for each shape, and batches out of one bucket at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..losses.denoising import NoisedBatch, draw_batch, draw_batches


@dataclass(frozen=True)
class Bucket:
    """Encoded images of one shape.

    Attributes:
        latents: x_0, [N, C, h, w].
        masks: [N, 1, h, w] in 0..1, or None.
        first: how many images the buckets before it hold; its images are counted on from there.
    """

    latents: Tensor
    masks: Tensor | None = None
    first: int = 0


def bucket_shape(height: int, width: int, resolution: int) -> tuple[int, int]:
    """The height and width that an image is trained at: the nearest aspect ratio out of a few of about the same area.

    Sides are multiples of 64 pixels (of a quarter of the resolution where that is less), the longer one at most twice
    the resolution, the area at most its square and otherwise as large as fits.

    Source: the idea is of NovelAI's trainer (2022); the rule is ours.

    Args:
        height: of the image.
        width: of the image.
        resolution: R, the side of a square of the wanted area, a multiple of 8.
    """
    step = max(8, min(64, resolution // 4 // 8 * 8))
    shapes = [(resolution, resolution)]
    for long in range(-(-resolution // step) * step, 2 * resolution + 1, step):
        if short := resolution**2 // long // step * step:
            shapes += [(short, long), (long, short)]
    wanted = math.log(width / height)
    return min(shapes, key=lambda shape: (round(abs(math.log(shape[1] / shape[0]) - wanted), 9), -shape[0] * shape[1]))


def drawn_batches(
    denoiser: Denoiser, buckets: Sequence[Bucket], parts: int, size: int, rng: torch.Generator
) -> Iterator[tuple[Tensor, NoisedBatch]]:
    """The batches of a step: for each of its parts the indices of its images [size], and the images noised.

    Every image is drawn equally often: a part's bucket is that of an image drawn from all, the others are drawn from
    this bucket.

    Args:
        denoiser: gives the schedule.
        buckets: at least one.
        parts: how many batches.
        size: of each.
        rng: of the step, on the CPU.
    """
    if len(buckets) == 1:
        (bucket,) = buckets
        chosen = torch.randint(len(bucket.latents), (parts * size,), generator=rng).chunk(parts)
        yield from zip(chosen, draw_batches(denoiser, bucket.latents, bucket.masks, chosen, rng), strict=True)
        return
    total = buckets[-1].first + len(buckets[-1].latents)
    for _ in range(parts):
        image = int(torch.randint(total, (), generator=rng))
        bucket = next(bucket for bucket in reversed(buckets) if bucket.first <= image)
        others = torch.randint(len(bucket.latents), (size - 1,), generator=rng)
        own = torch.cat([torch.tensor([image - bucket.first]), others])
        yield bucket.first + own, draw_batch(denoiser, bucket.latents, bucket.masks, own, rng)
