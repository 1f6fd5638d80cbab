"""The images of a folder for the page: their list, small pictures of them, and their captions to edit.

Everything is read-only but captions, and only those of images below ComfyUI's input.
"""

import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web

from ...trainer.concept_files import caption_file, images_in, read_caption, write_caption
from ...trainer.disk.files import inside
from ...trainer.disk.names import shown
from ...trainer.errors import ContinualLoraError
from ...trainer.images import thumbnail, upright_size
from ..load_concept_images import BUNDLED, SAMPLES, image_folder
from .answers import RefusedError, told

PATH = "/continual_lora/concepts"
MOST_LISTED = 200  # a page with more pictures than this is of no use, and slow
THUMBNAIL_SIDE = 256
MAX_BODY = 100_000  # bytes; a caption has 10 000 characters at most


def add_concept_routes(routes: web.RouteTableDef) -> None:
    """Add the three routes."""

    @routes.get(PATH)
    @told
    async def list_images(request: web.Request) -> web.Response:
        """`?folder=`: the images of a choice of the node's drop-down."""
        return web.json_response(await asyncio.to_thread(_listing, request.query.get("folder", "")))

    @routes.get(f"{PATH}/thumbnail")
    @told
    async def small_picture(request: web.Request) -> web.Response:
        """`?folder=&name=&version=`: one of them, small; with the version of the list it may be kept for good."""
        folder, name = request.query.get("folder", ""), request.query.get("name", "")
        body, version = await asyncio.to_thread(_thumbnail, folder, name)
        kept = "private, max-age=31536000, immutable" if request.query.get("version") == version else "no-cache"
        headers = {"Cache-Control": kept, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=body, content_type="image/jpeg", headers=headers)

    @routes.post(f"{PATH}/caption")
    @told
    async def save_caption(request: web.Request) -> web.Response:
        """`{"folder", "name", "before", "caption"}`: write the caption of an image, if it still is `before`."""
        words = await _words(request, ("folder", "name", "before", "caption"))
        return web.json_response({"caption": await asyncio.to_thread(_save, **words)})


def _real_folder(choice: str) -> tuple[Path, Path]:
    """The folder behind a choice and the folder that nothing may lead out of, links followed."""
    root = SAMPLES if choice.startswith(BUNDLED) else Path(folder_paths.get_input_directory())
    folder = image_folder(choice)
    if not os.path.isdir(folder):  # noqa: PTH112 (Path.is_dir raises where a name is too long)
        raise RefusedError(
            404,
            '"folder" should be a folder that is there.',
            f"There is none called {shown(choice)}.",
            "Choose another; press R in ComfyUI to look again.",
        )
    try:
        return inside(folder, root), root
    except ContinualLoraError as error:
        raise RefusedError(
            403,
            '"folder" should be below ComfyUI\'s input.',
            f"{shown(choice)} is a link that leads out of it.",
            "Put the images themselves there.",
        ) from error


def _images(choice: str) -> tuple[list[Path], Path]:
    """The images of a choice and the folder that nothing may lead out of."""
    folder, root = _real_folder(choice)
    try:
        return images_in(folder), root
    except OSError as error:
        raise RefusedError(
            403, "The folder should be readable.", f"{shown(choice)}: {error.strerror}.", "Allow ComfyUI to read it."
        ) from error


def _image(choice: str, name: str) -> Path:
    """One image of a choice; only names that its list has are taken, so that none can be a path."""
    files, root = _images(choice)
    file = next((file for file in files if file.name == name), None)
    if file is None:
        raise RefusedError(
            404,
            '"name" should be an image of the folder.',
            f"There is no {shown(name)} in {shown(choice)}.",
            "Press R in ComfyUI to look again.",
        )
    inside(file, root)
    return file


def _listing(choice: str) -> dict[str, Any]:
    files, root = _images(choice)
    return {
        "editable": not choice.startswith(BUNDLED),
        "total": len(files),
        "images": [_described(file, root) for file in files[:MOST_LISTED]],
    }


def _described(file: Path, root: Path) -> dict[str, Any]:
    """What the page shows of an image; `problem` says why something of it is missing."""
    found = {"name": file.name, "caption": "", "width": 0, "height": 0, "version": "", "problem": ""}
    try:
        inside(file, root)
        found["width"], found["height"] = upright_size(file)
        found["version"] = _version(file)
        inside(caption_file(file), root)
        found["caption"] = read_caption(file)
    except ContinualLoraError as error:
        found["problem"] = str(error)
    return found


def _version(file: Path) -> str:
    """Another one whenever the file is another."""
    state = file.stat()
    return f"{state.st_mtime_ns:x}-{state.st_size:x}"


def _thumbnail(choice: str, name: str) -> tuple[bytes, str]:
    file, jpeg = _image(choice, name), io.BytesIO()
    version = _version(file)
    thumbnail(file, THUMBNAIL_SIDE).save(jpeg, "JPEG", quality=85)
    return jpeg.getvalue(), version


def _save(folder: str, name: str, before: str, caption: str) -> str:
    if folder.startswith(BUNDLED):
        raise RefusedError(
            403,
            "Captions of bundled samples are not changed.",
            f"{shown(name)} is one of {shown(folder)}.",
            "Copy the images into a folder below ComfyUI's input.",
        )
    file = _image(folder, name)
    inside(caption_file(file), Path(folder_paths.get_input_directory()))
    now = read_caption(file)
    if now != before:
        raise RefusedError(
            409,
            f"The caption of {shown(name)} should be what the page last showed.",
            f"On disk it is {shown(now)} by now.",
            "Press R in ComfyUI to see it, then edit it again.",
        )
    return write_caption(file, caption)


async def _words(request: web.Request, names: tuple[str, ...]) -> dict[str, str]:
    """The body of a request to write, which has to be JSON: a form of a foreign page cannot send that unasked."""
    if request.content_type != "application/json":
        raise RefusedError(
            415, "The request should be application/json.", f"It is {shown(request.content_type)}.", "Send JSON."
        )
    try:
        await request.content.readexactly(MAX_BODY + 1)
    except asyncio.IncompleteReadError as end:
        body = end.partial
    else:
        raise RefusedError(
            413, f"The request should have {MAX_BODY} bytes at most.", "It has more.", "Make it shorter."
        )
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in names):
        raise RefusedError(
            400, f"The request should hold the texts {', '.join(names)}.", "Not all of them came.", "Send them."
        )
    return {name: found[name] for name in names}
