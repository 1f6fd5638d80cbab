"""How a route refuses: the three facts of the error as JSON, with a status."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from ...trainer.errors import ContinualLoraError, StorageError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RefusedError(ContinualLoraError):
    """An error of a route.

    Args:
        status: of the answer, 4xx.
        expected: what was wanted, in the user's words.
        came: what was found instead.
        do: what to change.
    """

    def __init__(self, status: int, expected: str, came: str, do: str) -> None:
        super().__init__(expected, came, do)
        self.status = status


def told(handler: Handler) -> Handler:
    """A handler whose errors reach the page in words: `{"error": "..."}`."""

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except StorageError as error:
            return web.json_response({"error": str(error)}, status=507)
        except RefusedError as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except ContinualLoraError as error:
            return web.json_response({"error": str(error)}, status=400)

    return answer
