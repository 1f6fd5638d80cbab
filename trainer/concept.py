"""What is taught: a few images of one concept, its token, its class noun and its captions."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .concept_files import image_files, read_caption
from .disk.names import MAX_PROMPT, check_words, is_reserved, shown
from .errors import ContinualLoraError
from .images import Alpha, Color, decode, fit, shrink, split_alpha

TEMPLATE = "photo of a <{token}> {class_noun}"
WHITE: Color = (1.0, 1.0, 1.0)
MIN_SIDE = 8
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, eq=False)
class Concept:
    """One concept to teach; checked when it is made.

    Args:
        name: what the user calls it.
        token: the new word, without brackets; prompts write it `<token>`. It also names files.
        class_noun: what kind of thing it is, such as "animal".
        images: one [3, H, W] in 0..1 each, of any size.
        masks: for each image [1, H, W] in 0..1, where the loss counts, or None for everywhere.
        captions: for each image its own description, or "" to use the prompt.
        digests: for each image the SHA-256 of its pixels, mask and caption as they were given.
        template: the prompt, with `{token}` and `{class_noun}` to be filled in.
    """

    name: str
    token: str
    class_noun: str
    images: list[Tensor]
    masks: list[Tensor | None]
    captions: list[str]
    digests: list[str]
    template: str = TEMPLATE

    def __post_init__(self) -> None:
        assert len(self.images) == len(self.masks) == len(self.captions) == len(self.digests) > 0
        check_token(self.token)
        check_words(self.name, "name")
        check_words(self.class_noun, "class_noun")
        check_words(self.template, "prompt", MAX_PROMPT)
        for caption in self.captions:
            check_words(caption, "caption", MAX_PROMPT)
        if not self.class_noun.strip():
            raise ContinualLoraError(
                f'Concept "{self.name}" needs a class noun.',
                "It is empty.",
                'Set "class_noun" to what kind of thing it is, such as "animal".',
            )
        if f"<{self.token}>" not in self.prompt:
            raise ContinualLoraError(
                f'The prompt of concept "{self.name}" must contain its token "<{self.token}>".',
                f'It is "{self.prompt}".',
                f'Write "<{self.token}>" or "<{{token}}>" where the new word belongs.',
            )

    @property
    def prompt(self) -> str:
        """The template with token and class noun filled in."""
        return self.filled(self.template)

    @property
    def prompts(self) -> list[str]:
        """For each image what it is trained with: its caption, after the prompt if it lacks the token."""
        filled = [self.filled(caption) for caption in self.captions]
        return [
            caption if f"<{self.token}>" in caption else ", ".join(filter(None, (self.prompt, caption)))
            for caption in filled
        ]

    def filled(self, text: str) -> str:
        """A text with `{token}` and `{class_noun}` filled in."""
        return text.replace("{token}", self.token).replace("{class_noun}", self.class_noun.strip())


def check_token(token: str) -> None:
    """Raise unless `token` can be both a word in a prompt and a file name."""
    if not _TOKEN.fullmatch(token) or is_reserved(token):
        raise ContinualLoraError(
            "A token is 1 to 64 characters long, each a letter A to Z, a digit, - or _, and a valid file name.",
            f"It is {shown(token)}.",
            'Set "token" to a made-up word such as "my-fox".',
        )


def bare_token(text: str) -> str:
    """`text` without blanks and angle brackets around it: `<fox>` and `fox` are the same token."""
    return text.strip().removeprefix("<").removesuffix(">")


def load_concept(
    folder: Path,
    *,
    token: str,
    class_noun: str,
    name: str = "",
    template: str = TEMPLATE,
    alpha: Alpha = "composite",
    background: Color = WHITE,
) -> Concept:
    """Read every image of a folder, in the order of the file names, upright, with its caption.

    Args:
        folder: holds the images and, for `fox.png`, the caption `fox.txt` if there is one.
        token: the new word, with or without angle brackets.
        class_noun: what kind of thing the concept is.
        name: what the user calls it; empty means the token.
        template: the prompt.
        alpha: "mask" also keeps transparency as a loss mask; both show `background` through it.
        background: RGB in 0..1.
    """
    check_token(bare_token(token))
    files = image_files(folder)
    sources = {file.name: split_alpha(decode(file), alpha, background) for file in files}
    captions = [read_caption(file) for file in files]
    return _make(sources, captions, name=name, token=token, class_noun=class_noun, template=template)


def concept_from_batch(
    images: Tensor,
    *,
    token: str,
    class_noun: str,
    name: str = "",
    template: str = TEMPLATE,
    alpha: Alpha = "composite",
    background: Color = WHITE,
) -> Concept:
    """The concept of an image batch [B, H, W, C] in 0..1, C being 1 (gray), 3 (RGB) or 4 (RGBA).

    The other arguments are those of `load_concept`.
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or not images.numel() or not images.isfinite().all():
        raise ContinualLoraError(
            "Expected a batch of images [B, H, W, C] with 1, 3 or 4 channels and no NaN.",
            f"It has the shape {list(images.shape)} and {int((~images.isfinite()).sum())} values that are not numbers.",
            'Connect an IMAGE output to "images".',
        )
    channels_first = images.detach().to("cpu", torch.float32).clamp(0, 1).permute(0, 3, 1, 2)
    sources = {
        f"image {index} of the batch": split_alpha(image, alpha, background)
        for index, image in enumerate(channels_first, start=1)
    }
    return _make(sources, [""] * len(images), name=name, token=token, class_noun=class_noun, template=template)


def prepare(concept: Concept, resolution: int) -> tuple[Tensor, Tensor | None]:
    """Bring every image to the base's size: the short side is fitted, the middle is kept.

    Args:
        concept: its images may have any size.
        resolution: R, the side of the square.

    Returns:
        Images [N, 3, R, R] in 0..1, and masks [N, 1, R, R] in 0..1 or None if no image has one.
    """
    images = torch.stack([fit(image, resolution) for image in concept.images])
    masks = None
    if any(mask is not None for mask in concept.masks):
        everywhere = torch.ones(1, resolution, resolution)
        masks = torch.stack([everywhere if mask is None else fit(mask, resolution) for mask in concept.masks])
        for index, mask in enumerate(masks):
            if not mask.any():
                raise ContinualLoraError(
                    f'Image {index + 1} of concept "{concept.name}" must have something to learn inside its mask.',
                    "It is fully transparent after the crop to a square.",
                    'Remove the image, crop it yourself, or set "alpha" to "composite".',
                )
    return images, masks


def _make(sources: dict[str, tuple[Tensor, Tensor | None]], captions: list[str], **words: str) -> Concept:
    """Check the sizes, take the digests of what was given, and shrink what is too large to keep."""
    for label, (image, _) in sources.items():
        height, width = image.shape[-2:]
        if min(height, width) < MIN_SIDE:
            raise ContinualLoraError(
                f"Each side of an image must be at least {MIN_SIDE} pixels.",
                f'"{label}" is {width} x {height}.',
                "Remove it or use a larger picture.",
            )
    pairs = list(sources.values())
    token = bare_token(words["token"])
    return Concept(
        name=words["name"].strip() or token,
        token=token,
        class_noun=words["class_noun"],
        images=[shrink(image) for image, _ in pairs],
        masks=[None if mask is None else shrink(mask) for _, mask in pairs],
        captions=captions,
        digests=[_digest(image, mask, caption) for (image, mask), caption in zip(pairs, captions, strict=True)],
        template=words["template"],
    )


def _digest(image: Tensor, mask: Tensor | None, caption: str) -> str:
    digest = hashlib.sha256(f"{list(image.shape)} {mask is not None} ".encode())
    for part in (image, mask):
        if part is not None:
            digest.update(part.contiguous().numpy().tobytes())
    digest.update(caption.encode())
    return digest.hexdigest()
