"""Reading, checking and preparing the images of a concept, against values worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.concept import Concept, bare_token, concept_from_batch, load_concept, prepare
from trainer.errors import ContinualLoraError
from trainer.images import MAX_SHORT_SIDE

WORDS = {"token": "fox", "class_noun": "animal"}


def solid(size=(16, 16), mode="RGB", color=(255, 0, 0)):
    return Image.new(mode, size, color)


def only_image(folder, **settings):
    concept = load_concept(folder, **WORDS, **settings)
    assert len(concept.images) == 1
    return concept.images[0]


def pixel(image, x=0, y=0):
    return image[:, y, x].tolist()


def fails(expected, came, do, call):
    """The three facts of the error, one sentence each, in this order."""
    with pytest.raises(ContinualLoraError) as caught:
        call()
    message = str(caught.value)
    positions = [message.find(fact) for fact in (expected, came, do)]
    assert -1 not in positions and positions == sorted(positions), message
    assert message.endswith(".")


# Reading


def test_every_suffix_is_read_in_name_order_and_nothing_else(tmp_path):
    for index, name in enumerate(["b.PNG", "a.jpg", "e.bmp", "c.webp", "d.jpeg"]):
        solid(color=(0, 0, 0), size=(10 + index, 10)).save(tmp_path / name)
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "._b.png").write_bytes(b"left by another system")
    (tmp_path / "inner").mkdir()
    widths = [image.shape[-1] for image in load_concept(tmp_path, **WORDS).images]
    assert widths == [11, 10, 13, 14, 12]  # a, b, c, d, e


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_lands_upright(tmp_path, orientation):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[8:, 16:] = (0, 0, 255)
    # How a camera stores it: the transformation that a viewer has to undo.
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    image = only_image(tmp_path)
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(upright).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (255, 51, 0), (1.0, 0.2, 0.0)),
        ("L", 51, (0.2, 0.2, 0.2)),
        ("1", 1, (1.0, 1.0, 1.0)),
        ("I;16", 13107, (0.2, 0.2, 0.2)),  # 13107 / 65535 = 1/5: not the top byte, not clipped to white
        ("LA", (0, 51), (0.8, 0.8, 0.8)),  # black at opacity 0.2 on white: 0 * 0.2 + 1 * 0.8
        ("RGBA", (255, 0, 51, 102), (1.0, 0.6, 0.68)),  # opacity 0.4: 0.6 + 0.4 * (1, 0, 0.2)
    ],
)
def test_every_mode_decodes_to_its_value(tmp_path, mode, color, expected):
    solid(mode=mode, color=color).save(tmp_path / "a.png")
    assert pixel(only_image(tmp_path), 3, 4) == pytest.approx(expected, abs=1e-6)


def test_palette_decodes_to_its_colors_and_its_transparent_entry_shows_the_background(tmp_path):
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 255, 0, 0, 0, 255])
    image.putpixel((5, 0), 1)
    image.save(tmp_path / "a.png")
    assert pixel(only_image(tmp_path)) == [0, 1, 0]
    assert pixel(only_image(tmp_path), 5, 0) == [0, 0, 1]
    image.save(tmp_path / "a.png", transparency=1)
    assert pixel(only_image(tmp_path)) == [0, 1, 0]
    assert pixel(only_image(tmp_path, background=(1.0, 0.5, 0.0)), 5, 0) == [1, 0.5, 0]


def test_cmyk_decodes_to_rgb(tmp_path):
    solid(mode="CMYK", color=(0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    solid(mode="CMYK", color=(0, 0, 0, 204)).save(tmp_path / "b.jpg", quality=100)
    red, gray = load_concept(tmp_path, **WORDS).images
    assert pixel(red) == pytest.approx([1, 0, 0], abs=0.01)
    assert pixel(gray) == pytest.approx([0.2, 0.2, 0.2], abs=0.01)  # 1 - 204 / 255


def test_alpha_is_composited_on_the_color_or_kept_as_a_mask(tmp_path):
    image = solid(mode="RGBA", color=(0, 255, 0, 255))
    image.putpixel((2, 1), (255, 0, 0, 51))
    image.save(tmp_path / "a.png")
    composited = load_concept(tmp_path, **WORDS, background=(0.0, 0.0, 1.0))
    assert composited.masks == [None]
    assert pixel(composited.images[0], 2, 1) == pytest.approx([0.2, 0.0, 0.8])  # 0.2 * red + 0.8 * blue
    masked = load_concept(tmp_path, **WORDS, alpha="mask", background=(0.0, 0.0, 1.0))
    assert torch.equal(masked.images[0], composited.images[0])
    assert masked.masks[0].shape == (1, 16, 16)
    assert masked.masks[0][0, 1, 2].item() == pytest.approx(0.2)
    assert masked.masks[0].sum().item() == pytest.approx(255.2)


def test_an_opaque_alpha_channel_makes_no_mask(tmp_path):
    solid(mode="RGBA", color=(0, 255, 0, 255)).save(tmp_path / "a.png")
    assert load_concept(tmp_path, **WORDS, alpha="mask").masks == [None]


def test_captions_come_from_the_text_beside_the_image(tmp_path):
    for name in ("a", "b", "c", "d"):
        solid().save(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf a {class_noun} \n asleep: <fox>\n")  # with a byte order mark
    (tmp_path / "b.txt").write_text("in the snow, caf\u00e9", encoding="utf-8")
    (tmp_path / "c.txt").write_text(" \n")
    concept = load_concept(tmp_path, **WORDS)
    assert concept.captions == ["a {class_noun} asleep: <fox>", "in the snow, caf\u00e9", "", ""]
    assert concept.prompts == [
        "a animal asleep: <fox>",
        "photo of a <fox> animal, in the snow, caf\u00e9",  # without its token nothing would be learned of it
        "photo of a <fox> animal",
        "photo of a <fox> animal",
    ]


def test_a_large_photo_is_kept_at_a_bearable_size(tmp_path):
    solid(size=(MAX_SHORT_SIDE * 2 + 100, MAX_SHORT_SIDE * 2), mode="L", color=51).save(tmp_path / "a.png")
    image = only_image(tmp_path)
    assert image.shape == (3, MAX_SHORT_SIDE, MAX_SHORT_SIDE + 50)
    assert image.min().item() == pytest.approx(0.2, abs=1e-5) and image.max().item() == pytest.approx(0.2, abs=1e-5)


# A batch from the graph


def test_batch_equals_the_same_pixels_from_a_folder(tmp_path):
    pixels = np.arange(16 * 16 * 4, dtype=np.uint32).reshape(16, 16, 4).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    batch = torch.from_numpy(pixels.astype(np.float32) / 255)[None]
    for alpha in ("composite", "mask"):
        loaded, made = load_concept(tmp_path, **WORDS, alpha=alpha), concept_from_batch(batch, **WORDS, alpha=alpha)
        assert torch.equal(loaded.images[0], made.images[0])
        assert loaded.digests == made.digests


def test_gray_batch_is_repeated_and_values_are_clamped():
    batch = torch.full((1, 8, 8, 1), 0.25)
    batch[0, 0, 0, 0] = 1.5
    concept = concept_from_batch(batch, **WORDS)
    assert pixel(concept.images[0]) == [1, 1, 1]
    assert pixel(concept.images[0], 1, 0) == [0.25, 0.25, 0.25]


def test_batch_made_in_inference_mode_can_be_trained_on():
    # The host runs nodes in inference mode; autograd refuses to save such tensors.
    with torch.inference_mode():
        concept = concept_from_batch(torch.rand(2, 16, 16, 3), **WORDS)
    images, _ = prepare(concept, 16)
    assert not images.is_inference()
    weight = torch.ones(1, requires_grad=True)
    (images * weight).sum().backward()


# Preparing


def gradient(width, height):
    """Red is x / 255, green is y / 255."""
    x, y = torch.arange(width).expand(height, -1), torch.arange(height)[:, None].expand(-1, width)
    return torch.stack([x, y, torch.zeros(height, width)], dim=-1)[None] / 255


@pytest.mark.parametrize(
    ("width", "height", "left", "top"), [(32, 20, 6, 0), (20, 32, 0, 6), (33, 20, 6, 0), (20, 20, 0, 0)]
)
def test_crop_keeps_the_middle_exactly(width, height, left, top):
    concept = concept_from_batch(gradient(width, height), **WORDS)
    images, masks = prepare(concept, 20)
    assert masks is None
    expected = torch.arange(20, dtype=torch.float32)
    assert torch.equal((images[0, 0, 0] * 255).round(), expected + left)
    assert torch.equal((images[0, 1, :, 0] * 255).round(), expected + top)


def test_resize_fits_the_short_side_and_keeps_the_aspect():
    # 64 x 40 to R = 20: 32 x 20, then 6 columns off each side. Pixel i of the result covers the input's 2 (i + 6)
    # and 2 (i + 6) + 1, whose mean is 2 (i + 6) + 0.5: on a linear ramp any centered kernel gives exactly that.
    images, _ = prepare(concept_from_batch(gradient(64, 40), **WORDS), 20)
    assert images.shape == (1, 3, 20, 20)
    expected = (2 * (torch.arange(20) + 6) + 0.5) / 255
    assert torch.allclose(images[0, 0, 10], expected, atol=1e-5)


def test_resize_is_antialiased():
    # A one-pixel checkerboard has no detail left at half the size: gray everywhere, no stripes.
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).float()[None, :, :, None].expand(-1, -1, -1, 3)
    images, _ = prepare(concept_from_batch(board, **WORDS), 16)
    assert (images[..., 2:-2, 2:-2] - 0.5).abs().max() < 0.02


def test_small_images_are_enlarged_within_range():
    images, _ = prepare(concept_from_batch(torch.rand(2, 8, 12, 3).round(), **WORDS), 64)
    assert images.shape == (2, 3, 64, 64)
    assert images.min() >= 0 and images.max() <= 1


def test_mask_is_cropped_with_its_image_and_missing_ones_count_everywhere(tmp_path):
    pixels = np.full((16, 24, 4), 255, np.uint8)
    pixels[:, 5, 3] = 0  # column 5 of 24 is column 1 after 4 are cut off
    Image.fromarray(pixels).save(tmp_path / "a.png")
    solid().save(tmp_path / "b.png")
    _, masks = prepare(load_concept(tmp_path, **WORDS, alpha="mask"), 16)
    assert masks.shape == (2, 1, 16, 16)
    assert masks[0, 0, 3].tolist() == [1, 0, *[1] * 14]
    assert masks[1].min() == 1


# Digests


def test_digest_changes_with_pixel_mask_and_caption_only(tmp_path):
    def digests(alpha="composite", background=(1.0, 1.0, 1.0), **words):
        return load_concept(tmp_path, **{**WORDS, **words}, alpha=alpha, background=background).digests

    image = solid(mode="RGBA", color=(10, 20, 30, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png", compress_level=0)
    first = digests()
    assert len(first) == 1 and len(first[0]) == 64
    image.save(tmp_path / "a.png", compress_level=9)  # other bytes, same picture
    assert digests() == first
    (tmp_path / "a.png").rename(tmp_path / "other.png")
    assert digests(token="other", class_noun="thing", template="<{token}>") == first
    assert digests(alpha="mask") != first
    assert digests(background=(0.0, 0.0, 0.0)) != first
    (tmp_path / "other.txt").write_text("asleep")
    assert digests() != first
    (tmp_path / "other.txt").unlink()
    image.putpixel((7, 7), (10, 20, 31, 255))
    image.save(tmp_path / "other.png")
    assert digests() != first


def test_digest_sees_pixels_that_shrinking_would_blur_away(tmp_path):
    size = (MAX_SHORT_SIDE * 2, MAX_SHORT_SIDE * 2)
    image = solid(size=size, mode="L", color=100)
    image.save(tmp_path / "a.png", compress_level=1)
    first = load_concept(tmp_path, **WORDS).digests
    image.putpixel((0, 0), 101)
    image.save(tmp_path / "a.png", compress_level=1)
    assert load_concept(tmp_path, **WORDS).digests != first


# Words and errors


def test_prompt_is_filled_and_the_name_defaults_to_the_token():
    concept = concept_from_batch(torch.zeros(1, 8, 8, 3), token=" <my-fox_2> ", class_noun=" animal ")
    assert (concept.name, concept.token, concept.prompt) == ("my-fox_2", "my-fox_2", "photo of a <my-fox_2> animal")
    written = concept_from_batch(torch.zeros(1, 8, 8, 3), **WORDS, name="Foxy", template="art of <fox>, {braces} kept")
    assert (written.name, written.prompt) == ("Foxy", "art of <fox>, {braces} kept")


def test_bare_token_takes_one_pair_of_brackets_off():
    assert [bare_token(text) for text in ("fox", "<fox>", " <fox>\n", "<<fox>>")] == ["fox", "fox", "fox", "<fox>"]


@pytest.mark.parametrize(
    "token", ["", "  ", "my fox", "a/b", "..", "a.b", "caf\u00e9", "<<fox>>", "x" * 65, "NUL", "com1"]
)
def test_token_that_cannot_be_a_file_name(tmp_path, token):
    fails(
        "a letter A to Z, a digit, - or _",
        f"It is `{bare_token(token)[:57]}",
        'Set "token"',
        lambda: load_concept(tmp_path, token=token, class_noun="animal"),
    )


def test_empty_class_noun():
    fails(
        'Concept "Foxy" needs a class noun.',
        "It is empty.",
        'Set "class_noun"',
        lambda: concept_from_batch(torch.zeros(1, 8, 8, 3), token="fox", class_noun=" ", name="Foxy"),
    )


@pytest.mark.parametrize("template", ["photo of a fox", "", "photo of <foxes>", "<{class_noun}>"])
def test_token_not_in_prompt(template):
    fails(
        'The prompt of concept "fox" must contain its token "<fox>".',
        f'It is "{template.replace("{class_noun}", "animal")}".',
        'Write "<fox>" or "<{token}>"',
        lambda: concept_from_batch(torch.zeros(1, 8, 8, 3), **WORDS, template=template),
    )


def test_missing_folder(tmp_path):
    missing = tmp_path / "nowhere"
    fails("Expected a folder", f'no folder "{missing}"', "Check the path", lambda: load_concept(missing, **WORDS))


def test_folder_without_images(tmp_path):
    (tmp_path / "notes.md").write_text("no image")
    fails(
        "Expected at least one image (.png, .jpg, .jpeg, .webp, .bmp)",
        f'"{tmp_path}" has 1 other files and no image.',
        "Put a few images",
        lambda: load_concept(tmp_path, **WORDS),
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_unreadable_image_is_named(tmp_path, suffix):
    solid().save(tmp_path / f"good.{suffix}")
    whole = (tmp_path / f"good.{suffix}").read_bytes()
    for broken in (b"", b"not an image", whole[: len(whole) // 2]):
        (tmp_path / f"broken.{suffix}").write_bytes(broken)
        fails(
            f'"broken.{suffix}" must be a readable image.',
            "It could not be decoded",
            "Remove or replace it.",
            lambda: load_concept(tmp_path, **WORDS),
        )


def test_caption_that_is_not_utf_8(tmp_path):
    solid().save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    fails(
        "A caption file must be text in UTF-8.",
        '"a.txt" is not: ',
        "Save it again",
        lambda: load_concept(tmp_path, **WORDS),
    )


def test_image_that_is_too_small(tmp_path):
    solid(size=(40, 7)).save(tmp_path / "thin.png")
    fails("at least 8 pixels", '"thin.png" is 40 x 7.', "Remove it", lambda: load_concept(tmp_path, **WORDS))
    batch = torch.zeros(2, 8, 7, 3)
    fails(
        "at least 8 pixels", '"image 1 of the batch" is 7 x 8.', "Remove it", lambda: concept_from_batch(batch, **WORDS)
    )


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        (torch.zeros(8, 8, 3), "[8, 8, 3] and 0"),
        (torch.zeros(1, 8, 8, 2), "[1, 8, 8, 2] and 0"),
        (torch.zeros(0, 8, 8, 3), "[0, 8, 8, 3] and 0"),
        (torch.full((1, 8, 8, 3), float("nan")), "[1, 8, 8, 3] and 192"),
    ],
)
def test_batch_of_another_shape(batch, came):
    fails("Expected a batch of images", came, "Connect an IMAGE", lambda: concept_from_batch(batch, **WORDS))


def test_mask_with_nothing_left_after_the_crop():
    batch = torch.ones(1, 16, 48, 4)
    batch[..., 8:40, 3] = 0  # the middle, which is all that is kept
    concept = concept_from_batch(batch, **WORDS, alpha="mask")
    fails(
        'Image 1 of concept "fox" must have something to learn',
        "fully transparent after the crop",
        'set "alpha" to "composite"',
        lambda: prepare(concept, 16),
    )


def test_a_concept_cannot_be_changed():
    concept = concept_from_batch(torch.zeros(1, 8, 8, 3), **WORDS)
    assert isinstance(concept, Concept)
    with pytest.raises(AttributeError):
        concept.token = "other"
