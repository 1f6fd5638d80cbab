"""The course of a training: thinned curves, speeds, means and what is told of them, against hand values."""

import io
import json
import math
from dataclasses import replace

import pytest
from PIL import Image

from tests.toy import ToyBase, ToyUNet, toy_concept, toy_settings
from trainer.disk.partial import WAITING
from trainer.disk.sequence import ConceptSequence
from trainer.task import StepRecord
from trainer.teach import teach
from trainer.training import samples
from trainer.training.course import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    MAX_COURSES,
    MAX_ID,
    MAX_MESSAGE,
    MAX_POINTS,
    Course,
    Courses,
    Phase,
)

UNET = ToyUNet().requires_grad_(False)


def trained(steps, *, total=None, course=None):
    """A course whose loss is the step and whose penalty ten times that, a step a second."""
    course = course or Course(1)
    for step in steps:
        course.step(StepRecord("train", step, total or max(steps), float(step), 10.0 * step), now=float(step))
    return course


def test_a_short_curve_is_every_step():
    (phase,) = trained(range(1, 4), total=10).whole()["phases"]
    assert phase == {
        "name": "train",
        "step": 3,
        "total": 10,
        "stride": 1,
        "from": 0,
        "loss": [1.0, 2.0, 3.0],
        "penalty": [10.0, 20.0, 30.0],
        "measured": True,
    }


def test_a_long_curve_is_means_of_as_many_steps_each():
    steps = 4 * MAX_POINTS + 3
    (phase,) = trained(range(1, steps + 1)).whole()["phases"]
    assert phase["stride"] == 8
    assert len(phase["loss"]) == math.ceil(steps / 8) < MAX_POINTS
    means = [8 * i + 4.5 for i in range(steps // 8)] + [steps - 1.0]  # the last one is of three steps
    assert phase["loss"] == pytest.approx(means, rel=1e-5)
    assert phase["penalty"] == pytest.approx([10 * mean for mean in means], rel=1e-5)


def test_news_put_together_are_the_whole():
    course, known = Course(7), {}
    for step in range(1, 2 * MAX_POINTS + 8):
        trained([step], total=5000, course=course)
        if step % 5 and step != 2 * MAX_POINTS:
            continue
        for index, phase in enumerate(course.news()["phases"]):
            before = known.get(index, [])[: phase["from"]]
            assert len(before) == phase["from"]  # nothing was missed
            known[index] = before + phase["loss"]
    course.step(StepRecord("fisher", 1, 2, 0.5), now=1e6)
    first, second = course.news()["phases"]
    assert second["from"] == 0 and second["loss"] == [0.5]
    assert known[0][: first["from"]] + first["loss"] == course.whole()["phases"][0]["loss"]
    assert course.news()["phases"][0]["loss"] == []


def test_the_last_report_of_a_phase_is_no_further_step():
    course = Course(1)
    course.step(StepRecord("fisher", 1, 2, 0.5, values={"dc_accuracy": 1.0, "dc_entropy": 0.4}), now=0)
    course.step(StepRecord("fisher", 2, 2, 0.3, values={"dc_accuracy": 0.0, "dc_entropy": 0.2}), now=1)
    means = {"dc_accuracy": 0.5, "dc_entropy": 0.3, "fisher_trace": 9.0}
    course.step(StepRecord("fisher", 2, 2, 0.3, values=means), now=1)
    assert course.whole()["phases"][0]["loss"] == [0.5, 0.3]
    assert course.whole()["figures"] == pytest.approx({"dc_accuracy": 0.5, "dc_entropy": 0.3})


def test_figures_are_those_that_were_reported_and_no_others():
    assert trained([1, 2]).whole()["figures"] == {}
    course = Course(1)
    course.step(StepRecord("train", 1, 2, 0.5, values={"adapter_norm": 3.0, "loss_scale": 8.0}), now=0)
    course.step(StepRecord("train", 2, 2, 0.5, values={"adapter_norm": 4.0}), now=0)
    assert course.whole()["figures"] == {"adapter_norm": 4.0}


def test_speed_and_time_left_are_of_the_phase_that_is_on():
    course = Course(1)
    course.step(StepRecord("train", 1, 9, 0.5), now=100.0)
    assert course.whole()["speed"] is None and course.whole()["seconds_left"] is None
    course.step(StepRecord("train", 2, 9, 0.5), now=100.5)
    course.step(StepRecord("train", 3, 9, 0.5), now=101.0)
    assert course.whole()["speed"] == 2.0 and course.whole()["seconds_left"] == 3.0
    course.step(StepRecord("fisher", 1, 9, 0.5), now=102.0)
    assert course.whole()["speed"] is None
    course.end(FINISHED)
    assert course.whole()["speed"] is None and course.whole()["state"] == "finished"


@pytest.mark.parametrize("phase", ["prior", WAITING])
def test_phases_without_a_loss_have_no_curve(phase):
    course = Course(1)
    course.step(StepRecord(phase, 1, 2, 0.0), now=0)
    (told,) = course.whole()["phases"]
    assert told["loss"] == [] and told["step"] == 1 and not told["measured"]


def test_a_resumed_training_begins_with_its_log():
    course = Course(1)
    course.start("my-fox", 6, {"loss": [1.0, 2.0], "penalty": [0.5, 0.25], "adapter_norm": [1.0, 7.0]})
    trained([3], total=6, course=course)
    whole = course.whole()
    assert whole["phases"][0]["loss"] == [1.0, 2.0, 3.0] and whole["phases"][0]["penalty"] == [0.5, 0.25, 30.0]
    assert whole["token"] == "my-fox" and whole["figures"]["adapter_norm"] == 7.0


def test_a_log_without_penalties_is_shown():
    course = Course(1)
    course.start("my-fox", 2, {"loss": [1.0, 2.0]})
    assert course.whole()["phases"][0]["penalty"] == [0.0, 0.0]


def test_what_is_told_is_json_whatever_the_numbers():
    course = Course(1)
    course.start("my-fox", 9, {"loss": [math.nan, math.inf, 1 / 3]})
    course.figures["adapter_norm"] = math.inf
    course.end(FAILED, "x" * 10_000)
    whole = json.loads(json.dumps(course.whole(), allow_nan=False))
    assert whole["phases"][0]["loss"] == [None, None, 0.333333]
    assert whole["figures"] == {"adapter_norm": None} and len(whole["message"]) == MAX_MESSAGE


def test_the_picture_is_a_small_png():
    course = Course(1)
    picture = Image.new("RGB", (2000, 1000), "red")
    course.step(StepRecord("train", 4, 9, 0.5, picture=picture), now=0)
    with Image.open(io.BytesIO(course.picture)) as shown:
        assert shown.format == "PNG" and shown.size == (512, 256)
    assert course.whole()["picture"] == 4
    assert trained([1]).whole()["picture"] is None


def test_courses_are_told_apart_by_workflow_and_node():
    courses = Courses()
    for number, key in enumerate([("a", "1"), ("b", "1"), ("a", "12:5")]):
        courses.begin(*key).token = str(number)
    assert [(c["node"], c["token"]) for c in courses.of("a")] == [("1", "0"), ("12:5", "2")]
    assert [(c["node"], c["token"]) for c in courses.of("b")] == [("1", "1")]
    assert courses.of("") == courses.of("c") == []


def test_a_node_has_one_course_and_the_oldest_ones_go():
    courses = Courses()
    first = courses.begin("w", "0")
    assert courses.begin("w", "0") is not first
    for number in range(1, MAX_COURSES + 3):
        courses.begin("w", str(number))
    kept = [int(course["node"]) for course in courses.of("w")]
    assert kept == list(range(3, MAX_COURSES + 3))


@pytest.mark.parametrize("name", ["../../etc/passwd", "<script>", "x" * 10**6, "\ud83d", "a\0b", ""])
def test_hostile_ids_are_names_and_nothing_else(name):
    courses = Courses()
    courses.begin(name, name).show(b"png", 1)
    (course,) = courses.of(name)
    assert course["node"] == name[:MAX_ID] and json.dumps(course)
    assert courses.picture(name, name) == b"png"
    assert courses.picture(name, "1") is None and courses.picture("1", name) is None


def test_the_newest_picture_of_a_task_is_the_one_of_the_latest_step(tmp_path):
    for name in ("step_000002.png", "step_000010.png", "step_x.png", "other.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert samples.step_of(samples.newest(tmp_path)) == 10
    assert samples.newest(tmp_path / "none") is None


# What the trainer reports


def taught(root, on_step=lambda record: None, on_start=lambda task, log: None, **changes):
    base = ToyBase(UNET)
    settings = toy_settings(**{"recipe": "lora_ewc", **changes})
    sequence = ConceptSequence(root, base.fingerprint)
    return teach(base, toy_concept("fox"), settings, sequence, on_step, on_start=on_start)


def test_the_course_of_a_training_is_its_log(tmp_path):
    course, started = Course(1), []
    line = taught(tmp_path, lambda record: course.step(record, 0.0), lambda task, log: started.append((task, log)))
    (task,) = line.tasks
    log = line.log(task)
    ((begun, earlier),) = started
    assert replace(begun, values=task.values, files=task.files) == task
    assert earlier == {"loss": [], "penalty": [], "adapter_norm": []}
    train, fisher = course.whole()["phases"]
    assert train["loss"] == pytest.approx(log["loss"], rel=1e-5) and fisher["name"] == "fisher"
    assert course.whole()["figures"] == pytest.approx({"adapter_norm": log["adapter_norm"][-1]}, rel=1e-5)


def test_a_training_that_goes_on_tells_what_was_before(tmp_path):
    class CancelError(BaseException):
        pass

    def stop(record):
        if record.step == 3:
            raise CancelError

    with pytest.raises(CancelError):
        taught(tmp_path, stop)
    logs = []
    line = taught(tmp_path, on_start=lambda task, log: logs.append(log))
    whole = line.log(line.tasks[0])
    assert logs == [{name: values[:3] for name, values in whole.items()}]
    again = []
    taught(tmp_path, on_start=lambda task, log: again.append(log))
    assert again == []  # it was found, not trained


def test_an_interrupted_course_keeps_its_step():
    course = trained([1, 2], total=9)
    course.end(INTERRUPTED)
    whole = course.whole()
    assert whole["state"] == "interrupted" and (whole["phases"][0]["step"], whole["phases"][0]["total"]) == (2, 9)


def test_a_phase_takes_every_step_once():
    phase = Phase("train", 4)
    for step in (1, 1, 2, 2, 1, 3):
        phase.add(step, float(step), 0.0)
    assert [loss for loss, _ in phase.points] == [1.0, 2.0, 3.0]
