"""Pictures as tensors: decoding, transparency, size."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from .errors import ContinualLoraError

Alpha = Literal["composite", "mask"]
Color = tuple[float, float, float]

_ON_ITS_SIDE = (5, 6, 7, 8)  # of the eight orientations of Exif
MAX_SHORT_SIDE = 1536  # more than any base trains at; a folder of camera photos stays below a gigabyte


def decode(file: Path) -> Tensor:
    """The upright picture, [3, H, W] or with transparency [4, H, W], in 0..1."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
    except Exception as error:  # a decoder may raise anything on a broken file
        raise _not_readable(file, error) from error
    if image.mode.startswith("I"):
        gray = torch.from_numpy(np.asarray(image).astype(np.float32) / 65535).clamp(0, 1)
        return gray.expand(3, -1, -1).contiguous()
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return torch.from_numpy(np.array(image.convert(mode), dtype=np.float32) / 255).permute(2, 0, 1).contiguous()


def upright_size(file: Path) -> tuple[int, int]:
    """Width and height as `decode` gives them, from the file's head alone.

    Raises:
        ContinualLoraError: it is no image.
    """
    try:
        with Image.open(file) as opened:
            width, height = opened.size
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE
    except Exception as error:  # a decoder may raise anything on a broken file
        raise _not_readable(file, error) from error
    return (height, width) if turned else (width, height)


def thumbnail(file: Path, short_side: int) -> Image.Image:
    """The upright picture on white, its shorter side at `short_side` pixels at most.

    Raises:
        ContinualLoraError: it is no image.
    """
    try:
        with Image.open(file) as opened:
            scale = min(1, short_side / min(opened.size))
            # Before anything else, since a JPEG is then decoded at a fraction of its size.
            opened.thumbnail([max(1, round(side * scale)) for side in opened.size])
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):
                image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            if not image.has_transparency_data:
                return image.convert("RGB")
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    except Exception as error:  # a decoder may raise anything on a broken file
        raise _not_readable(file, error) from error


def _not_readable(file: Path, error: Exception) -> ContinualLoraError:
    reason = str(error).replace(repr(str(file))[1:-1], file.name)  # decoders quote the whole path
    return ContinualLoraError(
        f'"{file.name}" must be a readable image.', f"It could not be decoded: {reason}.", "Remove or replace it."
    )


def decode_all(files: list[Path]) -> Tensor:
    """Pictures of one size, without their transparency, [N, 3, H, W] in 0..1."""
    images = [decode(file)[:3] for file in files]
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            height, width = images[0].shape[-2:]
            raise ContinualLoraError(
                f"`{file}` should be of the size of its neighbors, {width} x {height}.",
                f"It is {image.shape[-1]} x {image.shape[-2]}.",
                "Put it back as it was, or move its folder away.",
            )
    return torch.stack(images)


def to_pil(image: Tensor) -> Image.Image:
    """[3, H, W] in 0..1 as a picture."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())


def mosaic(images: Tensor, side: int) -> Image.Image:
    """The first four of [N, 3, H, W] two by two on white, a single one alone, as a picture of `side` pixels."""
    if len(images) > 1:
        white = torch.ones(max(0, 4 - len(images)), *images.shape[1:])
        top, bottom = (torch.cat(list(pair), dim=2) for pair in torch.cat([images, white])[:4].split(2))
        picture = to_pil(torch.cat([top, bottom], dim=1))
    else:
        picture = to_pil(images[0])
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def split_alpha(image: Tensor, alpha: Alpha, background: Color) -> tuple[Tensor, Tensor | None]:
    """[1, 3 or 4, H, W] -> RGB over the background, rgb * a + background * (1 - a), and the mask or None."""
    if len(image) < 4:
        return image.expand(3, -1, -1).contiguous(), None
    rgb, opacity = image[:3], image[3:]
    color = torch.tensor(background, dtype=torch.float32)[:, None, None]
    keep = alpha == "mask" and bool((opacity < 1).any())
    return rgb * opacity + color * (1 - opacity), opacity.clone() if keep else None


def _resize(image: Tensor, short_side: int) -> Tensor:
    """[C, H, W] with its shorter side at `short_side`, bicubic, antialiased, in 0..1."""
    height, width = image.shape[-2:]
    if min(height, width) == short_side:
        return image
    size = [max(short_side, round(side * short_side / min(height, width))) for side in (height, width)]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def shrink(image: Tensor) -> Tensor:
    """[C, H, W] with its shorter side at MAX_SHORT_SIDE at most."""
    return _resize(image, MAX_SHORT_SIDE) if min(image.shape[-2:]) > MAX_SHORT_SIDE else image


def fit(image: Tensor, resolution: int) -> Tensor:
    """[C, H, W] -> [C, R, R]: the short side is fitted, the middle is kept."""
    return crop_middle(_resize(image, resolution), resolution)


def cover(image: Tensor, height: int, width: int) -> Tensor:
    """[C, H, W] -> [C, height, width]: as large as covers it, the middle is kept."""
    scale = max(height / image.shape[-2], width / image.shape[-1])
    size = [max(want, round(side * scale)) for want, side in zip((height, width), image.shape[-2:], strict=True)]
    resized = (
        image
        if size == list(image.shape[-2:])
        else F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    )
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[:, top : top + height, left : left + width]


def crop_middle(image: Tensor, side: int) -> Tensor:
    """[C, H, W] -> [C, side, side]; H and W are at least `side`."""
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[:, top : top + side, left : left + side]
