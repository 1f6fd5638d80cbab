"""What the concept-sequence panel reads: tasks, the newest evaluation, pictures. Nothing is written.

    GET /continual_lora/sequence?choice=pets&first=1&count=50         facts about tasks, a page of them
    GET /continual_lora/evaluation?choice=pets&first=1&count=20       rows of the score table, and the pictures behind
    GET /continual_lora/picture?choice=pets&name=tasks/...&side=96    one picture, as WebP

What is wrong with a request or a sequence is a three-fact error, `{"error": "..."}` with status 400.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ...trainer.errors import ContinualLoraError
from ...trainer.evaluation.record import newest_record, read_record, record_rows
from ...trainer.overview import choice_of, find_line, find_root, picture_path, task_facts, thumbnail, whole_number
from ..host import sequences_folder
from .answers import told

MOST_TASKS, MOST_ROWS = 100, 50
LARGEST_SIDE = 512

Query = Mapping[str, str]


def add_sequence_routes(routes: web.RouteTableDef) -> None:
    """Add the three routes above; each reads in a thread, so that a slow disk holds up no other request."""

    @routes.get("/continual_lora/sequence")
    @told
    async def sequence(request: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(_read, _sequence, request.query))

    @routes.get("/continual_lora/evaluation")
    @told
    async def evaluation(request: web.Request) -> web.Response:
        return _json(await asyncio.to_thread(_read, _evaluation, request.query))

    @routes.get("/continual_lora/picture")
    @told
    async def picture(request: web.Request) -> web.Response:
        body = await asyncio.to_thread(_read, _picture, request.query)
        # A picture on disk is never drawn again; a new one has another name.
        headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
        return web.Response(body=body, content_type="image/webp", headers=headers)


def _read(read: Callable[[Query], Any], query: Query) -> Any:
    """What `read` finds; in three facts where the disk refuses."""
    try:
        return read(query)
    except OSError as error:
        raise ContinualLoraError(
            "The files of the sequence should be readable.",
            f"{error.strerror or error}.",
            "Check its folder in output/continual_lora and load the page again.",
        ) from error


def _json(value: dict[str, Any]) -> web.Response:
    return web.json_response(value, headers={"Cache-Control": "no-store"})


def _sequence(query: Query) -> dict[str, Any]:
    line = find_line(sequences_folder(), query.get("choice", ""))
    first = whole_number(query, "first", 1, 1, 1_000_000)
    count = whole_number(query, "count", MOST_TASKS // 2, 1, MOST_TASKS)
    tasks = line.tasks
    facts = task_facts(line, tasks[first - 1 : first - 1 + count])
    return {"name": line.root.name, "num_tasks": len(tasks), "tasks": [asdict(task) for task in facts]}


def _evaluation(query: Query) -> dict[str, Any]:
    """The evaluation that the query names, else the newest of the line; `evaluation` is None where there is none."""
    line = find_line(sequences_folder(), query.get("choice", ""))
    first = whole_number(query, "first", 1, 1, 1_000_000)
    count = whole_number(query, "count", MOST_ROWS // 2, 1, MOST_ROWS)
    named = query.get("evaluation")
    record = read_record(line, named) if named else newest_record(line)
    if record is None:
        return {"evaluation": None}
    return {
        "evaluation": record.name,
        "choice": choice_of(record.line),
        "encoder": record.encoder,
        "written": record.written,
        "num_tasks": len(record.line.tasks),
        "rows": record_rows(record, first, count),
    }


def _picture(query: Query) -> bytes:
    root = find_root(sequences_folder(), query.get("choice", ""))
    path = picture_path(root, query.get("name", ""))
    return thumbnail(path, whole_number(query, "side", 128, 16, LARGEST_SIDE))
