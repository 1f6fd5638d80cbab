"""The course of a training as a page shows it: thinned curves, how far and how fast, the newest picture.

Bounded, whatever is trained: see `MAX_POINTS`, `MAX_COURSES`, and `SHOWN_SIDE` of the pictures.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any

from ..disk.partial import WAITING
from ..task import StepRecord
from .prior import PHASE as PRIOR
from .samples import png_of

MAX_POINTS = 800  # of a phase: twice as many as a node has pixels for
MAX_COURSES = 32
MAX_ID, MAX_MESSAGE = 200, 600  # characters
TIMED_STEPS = 50  # what the speed is measured over
UNMEASURED = {PRIOR, WAITING}  # phases without a loss
SHOWN = ("adapter_norm", "validation_loss")
AVERAGED = ("dc_accuracy", "dc_entropy")  # of a batch each, so that only their mean over the phase says something
RUNNING, FINISHED, FOUND, INTERRUPTED, FAILED = "running", "finished", "found", "interrupted", "failed"


class Phase:
    """One phase: its curve, of means over `stride` steps each.

    Args:
        name: as in `StepRecord`.
        total: its steps.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.step, self.stride = name, total, 0, 1
        self.points: list[tuple[float, float]] = []  # (loss, penalty)
        self._open: list[tuple[float, float]] = []
        self._seconds: deque[float] = deque(maxlen=TIMED_STEPS)
        self._sums = dict.fromkeys(AVERAGED, 0.0)
        self._counts = dict.fromkeys(AVERAGED, 0)

    def add(self, step: int, loss: float, penalty: float) -> None:
        """Take in a step; one that was told before changes nothing. At `MAX_POINTS` neighbors are merged."""
        if step <= self.step:
            return
        self.step = step
        if self.name in UNMEASURED:
            return
        self._open.append((loss, penalty))
        if len(self._open) == self.stride or step == self.total:
            self.points.append(_mean(self._open))
            self._open = []
        if len(self.points) == MAX_POINTS:
            self.points = [_mean(self.points[i : i + 2]) for i in range(0, MAX_POINTS, 2)]
            self.stride *= 2

    def time(self, now: float) -> None:
        """Note when a step was made, in seconds."""
        self._seconds.append(now)

    def mean(self, name: str, value: float) -> float:
        """Take in a batch's figure; its mean over the phase so far."""
        self._sums[name] += value
        self._counts[name] += 1
        return self._sums[name] / self._counts[name]

    @property
    def speed(self) -> float | None:
        """Steps a second, over the last of them; None before the second step."""
        passed = self._seconds[-1] - self._seconds[0] if self._seconds else 0.0
        return (len(self._seconds) - 1) / passed if passed > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Of this phase; None where there is no speed yet."""
        return (self.total - self.step) / self.speed if self.speed else None

    def since(self, first: int) -> dict[str, Any]:
        """JSON: all of it, of the curve the points from `first` on. Point i is at step (i + 1) stride, or at the last.

        Means of losses that are no numbers are None.
        """
        losses, penalties = zip(*self.points[first:], strict=True) if self.points[first:] else ((), ())
        return {
            "name": self.name,
            "step": self.step,
            "total": self.total,
            "stride": self.stride,
            "from": first,
            "loss": [_rounded(value) for value in losses],
            "penalty": [_rounded(value) for value in penalties],
            "measured": self.name not in UNMEASURED,
        }


class Course:
    """One training. What `news` gives is what has changed since it was asked last.

    Args:
        run: a number that no other training has.
    """

    def __init__(self, run: int) -> None:
        self.run, self.state, self.message, self.token = run, RUNNING, "", ""
        self.phases: list[Phase] = []
        self.figures: dict[str, float] = {}
        self.picture: bytes | None = None  # PNG
        self.picture_step = 0
        self._told: list[tuple[int, int]] = []  # of each phase: its stride and its points, when they were told

    def start(self, token: str, total: int, log: Mapping[str, Iterable[float]]) -> None:
        """Begin with what was trained earlier; `log` as in `log.json`."""
        self.token = token
        phase = self._phase("train", total)
        losses = list(log["loss"])
        penalties = [*log.get("penalty", ())]
        penalties += [0.0] * (len(losses) - len(penalties))
        for step, (loss, penalty) in enumerate(zip(losses, penalties, strict=False), start=1):
            phase.add(step, loss, penalty)
        for name in SHOWN:
            if values := [*log.get(name, ())]:
                self.figures[name] = values[-1]

    def step(self, record: StepRecord, now: float) -> None:
        """Take in what a step reports, made at `now` seconds."""
        phase = self._phase(record.phase, record.total)
        phase.add(record.step, record.loss, record.penalty)
        phase.time(now)
        self.figures |= {name: record.values[name] for name in SHOWN if name in record.values}
        for name in AVERAGED:
            if name in record.values:
                self.figures[name] = phase.mean(name, record.values[name])
        if record.picture is not None:
            self.show(png_of(record.picture), record.step)

    def show(self, picture: bytes, step: int) -> None:
        """Have a picture, a PNG, that was drawn after a step."""
        self.picture, self.picture_step = picture, step

    def end(self, state: str, message: str = "", figures: Mapping[str, float] | None = None) -> None:
        """Say how it ended; a task's `values` are the figures that count."""
        self.state, self.message = state, message[:MAX_MESSAGE]
        self.figures |= {name: value for name, value in (figures or {}).items() if name in SHOWN + AVERAGED}

    def whole(self) -> dict[str, Any]:
        """JSON: everything."""
        return self._described([phase.since(0) for phase in self.phases])

    def news(self) -> dict[str, Any]:
        """JSON: as `whole`, of the curves only what is new; a curve whose points were merged is told from its start."""
        told = self._told + [(1, 0)] * (len(self.phases) - len(self._told))
        parts = [
            phase.since(count if phase.stride == stride else 0)
            for phase, (stride, count) in zip(self.phases, told, strict=True)
        ]
        self._told = [(phase.stride, len(phase.points)) for phase in self.phases]
        return self._described(parts)

    def _described(self, phases: list[dict[str, Any]]) -> dict[str, Any]:
        now = self.phases[-1] if self.phases and self.state == RUNNING else None
        return {
            "run": self.run,
            "state": self.state,
            "message": self.message,
            "token": self.token,
            "phases": phases,
            "figures": {name: _rounded(value) for name, value in self.figures.items()},
            "speed": _rounded(now.speed) if now and now.speed else None,
            "seconds_left": _rounded(now.seconds_left) if now and now.seconds_left is not None else None,
            "picture": self.picture_step if self.picture else None,
        }

    def _phase(self, name: str, total: int) -> Phase:
        """The phase that is on; a new one where the name is another than the last one's."""
        if not self.phases or self.phases[-1].name != name:
            self.phases.append(Phase(name, total))
        return self.phases[-1]


class Courses:
    """The last trainings, by the workflow and the node that ran them; for several threads.

    Two workflows may have a node of the same number: only both together tell whose course it is.
    """

    def __init__(self) -> None:
        self._courses: OrderedDict[tuple[str, str], Course] = OrderedDict()
        self.lock = Lock()

    def begin(self, workflow: str, node: str) -> Course:
        """A new course in the place of the node's last one; the oldest one goes where there are too many."""
        key = (workflow[:MAX_ID], node[:MAX_ID])
        with self.lock:
            self._courses.pop(key, None)
            course = self._courses[key] = Course(time.time_ns() // 1_000_000)
            while len(self._courses) > MAX_COURSES:
                self._courses.popitem(last=False)
        return course

    def of(self, workflow: str) -> list[dict[str, Any]]:
        """JSON: every course of a workflow, with its node."""
        with self.lock:
            own = [(node, course) for (key, node), course in self._courses.items() if key == workflow[:MAX_ID]]
            return [{"node": node, **course.whole()} for node, course in own]

    def picture(self, workflow: str, node: str) -> bytes | None:
        """The newest picture of a node's training, a PNG."""
        with self.lock:
            course = self._courses.get((workflow[:MAX_ID], node[:MAX_ID]))
            return course.picture if course else None


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    losses, penalties = zip(*points, strict=True)
    return sum(losses) / len(points), sum(penalties) / len(points)


def _rounded(value: float) -> float | None:
    """Six digits, for a short message; JSON has no word for what is infinite or no number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
