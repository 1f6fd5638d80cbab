"""Captions beside images, small pictures of them, and paths that have to stay in a folder."""

import os

import numpy as np
import pytest
from PIL import Image

from trainer.concept_files import images_in, read_caption, write_caption
from trainer.disk.files import inside
from trainer.disk.names import MAX_PROMPT
from trainer.errors import ContinualLoraError, StorageError
from trainer.images import thumbnail, upright_size


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.png")
    return tmp_path / "fox.png"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Captions


def test_caption_is_written_in_one_line_and_read_again(image):
    assert write_caption(image, "  a fox,\r\n\tin  snow \u2603 ") == "a fox, in snow \u2603"
    assert image.with_suffix(".txt").read_bytes() == "a fox, in snow \u2603\n".encode()
    assert read_caption(image) == "a fox, in snow \u2603"
    assert names(image.parent) == ["fox.png", "fox.txt"]


def test_no_other_file_is_touched(image):
    others = {name: name.encode() for name in ("fox.txt.tmp", "fox.png.txt", "foxes.txt", "fox.json")}
    for name, content in others.items():
        (image.parent / name).write_bytes(content)
    picture = image.read_bytes()
    write_caption(image, "one")
    write_caption(image, "two")
    assert {name: (image.parent / name).read_bytes() for name in others} == others
    assert image.read_bytes() == picture
    assert names(image.parent) == sorted([*others, "fox.png", "fox.txt"])


def test_empty_caption_keeps_the_file_and_makes_none(image):
    assert write_caption(image, " \n ") == ""
    assert names(image.parent) == ["fox.png"]
    write_caption(image, "a fox")
    assert write_caption(image, "") == ""
    assert image.with_suffix(".txt").read_bytes() == b""
    assert read_caption(image) == ""


def test_caption_that_the_disk_refuses_leaves_the_old_one(image, monkeypatch):
    write_caption(image, "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        write_caption(image, "new")
    assert read_caption(image) == "old"
    assert names(image.parent) == ["fox.png", "fox.txt"]


def test_link_in_the_place_of_a_caption_is_neither_followed_nor_replaced(image, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret.txt"
    secret.write_text("secret", encoding="utf-8")
    link = image.with_suffix(".txt")
    for target in (secret, secret.with_name("missing.txt")):
        link.symlink_to(target)
        with pytest.raises(ContinualLoraError, match="is a link or a folder"):
            write_caption(image, "new")
        assert link.is_symlink()
        link.unlink()
    assert names(secret.parent) == ["secret.txt"]
    assert secret.read_text(encoding="utf-8") == "secret"
    link.mkdir()
    with pytest.raises(ContinualLoraError, match="is a link or a folder"):
        write_caption(image, "new")


@pytest.mark.parametrize("caption", ["a\0fox", "\ud83d fox", "\x1b[31mfox", "x" * (MAX_PROMPT + 1)])
def test_caption_that_could_not_be_trained_on_is_not_written(caption, image):
    with pytest.raises(ContinualLoraError, match='"caption" should'):
        write_caption(image, caption)
    assert names(image.parent) == ["fox.png"]


def test_images_of_a_folder_are_sorted_and_not_hidden(tmp_path):
    for name in ("b.PNG", "a.jpeg", ".hidden.png", "c.txt", "d.gif"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["a.jpeg", "b.PNG"]


# Pictures


def test_thumbnail_is_upright_and_as_small_as_told(tmp_path):
    wide = Image.new("RGB", (200, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    exif = Image.Exif()
    exif[274] = 6  # the right side is up: to be turned clockwise
    wide.save(tmp_path / "a.png", exif=exif)
    assert upright_size(tmp_path / "a.png") == (100, 200)
    small = thumbnail(tmp_path / "a.png", 10)
    assert (small.size, small.mode) == ((10, 20), "RGB")
    assert small.getpixel((5, 2)) == (255, 0, 0)
    assert small.getpixel((5, 17)) == (0, 0, 255)


def test_thumbnail_never_enlarges(tmp_path):
    Image.new("RGB", (9, 30)).save(tmp_path / "a.png")
    assert upright_size(tmp_path / "a.png") == (9, 30)
    assert thumbnail(tmp_path / "a.png", 256).size == (9, 30)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_thumbnail_is_white_where_the_image_is_transparent(mode, tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.convert(mode).save(tmp_path / "a.png", **({"transparency": 0} if mode == "P" else {}))
    assert thumbnail(tmp_path / "a.png", 16).getcolors() == [(256, (255, 255, 255))]


def test_thumbnail_of_sixteen_bits_is_not_clipped(tmp_path):
    Image.fromarray(np.full((40, 40), 0x8000, dtype=np.uint16)).save(tmp_path / "a.png")
    assert thumbnail(tmp_path / "a.png", 16).getcolors() == [(256, (128, 128, 128))]


@pytest.mark.parametrize("call", [upright_size, lambda file: thumbnail(file, 16)])
def test_what_is_no_picture_is_told(call, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ContinualLoraError, match="must be a readable image"):
        call(tmp_path / "a.png")


# Paths


def test_real_path_has_to_stay_inside(tmp_path):
    root, outside = tmp_path / "input", tmp_path / "input2"
    (root / "pets").mkdir(parents=True)
    outside.mkdir()
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "pets")
    (root / "loop").symlink_to(root / "loop")
    assert inside(root / "pets" / "fox.png", root) == (root / "pets" / "fox.png").resolve()
    assert inside(root / "in" / "fox.png", root) == (root / "pets" / "fox.png").resolve()
    for path in (
        root,
        root / "..",
        root / "pets" / ".." / ".." / "input2",
        root / "out",
        root / "out" / "a.png",
        outside,
    ):
        with pytest.raises(ContinualLoraError, match="It leads out of it"):
            inside(path, root)
    assert inside(root / "loop", root).name == "loop"


def test_root_itself_may_be_a_link(tmp_path):
    (tmp_path / "real" / "pets").mkdir(parents=True)
    (tmp_path / "input").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "input" / "pets", tmp_path / "input") == (tmp_path / "real" / "pets").resolve()
