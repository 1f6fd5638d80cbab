"""The courses of the trainings, for a page that was not there when they were told."""

from typing import Any

from aiohttp import web

from ..live_course import COURSES


def add_training(routes: Any) -> None:
    """GET the courses of a workflow as JSON, and the newest picture of one node's training as a PNG."""

    @routes.get("/continual_lora/training")
    async def courses(request: web.Request) -> web.Response:
        return web.json_response({"trainings": COURSES.of(request.query.get("workflow", ""))})

    @routes.get("/continual_lora/training/picture")
    async def picture(request: web.Request) -> web.Response:
        png = COURSES.picture(request.query.get("workflow", ""), request.query.get("node", ""))
        if png is None:
            raise web.HTTPNotFound
        return web.Response(body=png, content_type="image/png", headers={"Cache-Control": "no-store"})
