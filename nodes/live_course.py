"""Tells the pages how a training goes, while it goes."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfy import model_management
from comfy_execution.utils import get_executing_context

from ..trainer.disk.manifest import TaskRecord
from ..trainer.disk.sequence import ConceptSequence as Sequence
from ..trainer.errors import ContinualLoraError
from ..trainer.task import StepRecord
from ..trainer.training import samples
from ..trainer.training.course import FAILED, FINISHED, FOUND, INTERRUPTED, Course, Courses
from .host import tell_pages

EVENT = "continual_lora.training"
SECONDS_BETWEEN = 0.25  # events, so that fast steps do not flood the pages
COURSES = Courses()  # what the server remembers of the trainings since it was started
log = logging.getLogger(__name__)


class LiveCourse:
    """A node's course, kept for pages that come later and told to those that are there.

    Args:
        hidden: the node's hidden inputs; None outside of a prompt.
    """

    def __init__(self, hidden: Any) -> None:
        self._workflow, self._node = _names(hidden)
        self._course: Course = COURSES.begin(self._workflow, self._node)
        self._told, self._started = 0.0, False
        self.tell()

    def start(self, root: Path, task: TaskRecord, earlier: Mapping[str, list[float]]) -> None:
        """A training begins, or goes on, in the sequence at `root`."""
        self._started = True
        with COURSES.lock:
            self._course.start(task.token, task.settings["steps"], earlier)
        self._show_newest(root, task)
        self.tell()

    def step(self, record: StepRecord) -> None:
        """A step was made; several are told at once."""
        now = time.monotonic()
        with COURSES.lock:
            self._course.step(record, now)
        first_or_last = record.step in (1, record.total)
        if first_or_last or record.picture is not None or now - self._told >= SECONDS_BETWEEN:
            self.tell()

    def finish(self, line: Sequence) -> None:
        """The newest task of a line was trained, or found on disk."""
        task, found = line.tasks[-1], not self._started
        if found:
            self.start(line.root, task, line.log(task))
        self._end(FOUND if found else FINISHED, figures=task.values)

    def fail(self, error: BaseException) -> None:
        """The training stopped: by the stop button, or by an error."""
        if isinstance(error, model_management.InterruptProcessingException):
            self._end(INTERRUPTED)
        else:
            own = isinstance(error, ContinualLoraError)
            self._end(FAILED, str(error) if own else f"{type(error).__name__}: {error} Queue again to go on.")

    def tell(self) -> None:
        """Send what is new."""
        with COURSES.lock:
            news = self._course.news()
        self._told = time.monotonic()
        tell_pages(EVENT, {"workflow": self._workflow, "node": self._node, **news})

    def _show_newest(self, root: Path, task: TaskRecord) -> None:
        path = samples.newest(root / samples.FOLDER / task.folder)
        if path is None:
            return
        try:
            picture = samples.read(path)
        except OSError as error:
            log.warning("The picture `%s` is not shown: %s", path, error)
            return
        with COURSES.lock:
            self._course.show(picture, samples.step_of(path))

    def _end(self, state: str, message: str = "", figures: Mapping[str, float] | None = None) -> None:
        with COURSES.lock:
            self._course.end(state, message, figures)
        self.tell()


@contextmanager
def live_course(hidden: Any) -> Iterator[LiveCourse]:
    """A course that also tells when what is inside raises."""
    course = LiveCourse(hidden)
    try:
        yield course
    except BaseException as error:
        course.fail(error)
        raise


def _names(hidden: Any) -> tuple[str, str]:
    """The workflow's id and the node's, "12:5" for node 5 of subgraph 12; "" where the caller has none.

    The node's id comes from the host's context: asking for it as a hidden input would make it part of the cache key.
    """
    context = get_executing_context()
    png_info = getattr(hidden, "extra_pnginfo", None)
    workflow = png_info.get("workflow") if isinstance(png_info, dict) else None
    name = workflow.get("id") if isinstance(workflow, dict) else None
    return str(name or ""), context.node_id if context else ""
