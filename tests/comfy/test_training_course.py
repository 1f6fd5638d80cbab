"""What the server tells the pages of a training: its events, and what a page that comes later is answered."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from tests.server import Client, Server

from .test_workflows import load, of_kind

EVENT = "continual_lora.training"
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def only_training(prompt: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """The first training of a workflow as the node "train", with other inputs, and what it needs."""
    number = of_kind(prompt, "ContinualLoRA_Train")[0]
    own = {**prompt[number]["inputs"], **inputs}
    needed = {value[0] for value in own.values() if isinstance(value, list)}
    train = {"train": {"class_type": "ContinualLoRA_Train", "inputs": own}}
    return {number: node for number, node in prompt.items() if number in needed} | train


def watch(
    client: Client, prompt: dict[str, Any], workflow: str, on_news: Callable[[dict[str, Any]], None] = lambda news: None
) -> list[dict[str, Any]]:
    """Run a prompt as the page of a workflow does, and collect what is told of its training."""
    extra = {"extra_pnginfo": {"workflow": {"id": workflow}}}
    body = {"prompt": prompt, "client_id": client.client_id, "extra_data": extra}

    async def messages() -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{client.url}/ws?clientId={client.client_id}", max_msg_size=0) as socket,
        ):
            await loop.run_in_executor(None, client.post, "/prompt", body)
            async for message in socket:
                if message.type != aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                if event["type"] == EVENT:
                    told.append(event["data"])
                    await loop.run_in_executor(None, on_news, event["data"])
                if event["type"] in ENDS:
                    return told
        raise AssertionError("The server closed the connection.")

    return asyncio.run(asyncio.wait_for(messages(), 240))


def put_together(told: list[dict[str, Any]], name: str) -> list[list[float]]:
    """The curves of the phases out of the news, as a page does."""
    curves: list[list[float]] = []
    for news in told:
        for index, phase in enumerate(news["phases"]):
            curves += [[] for _ in range(index + 1 - len(curves))]
            assert len(curves[index]) >= phase["from"]
            curves[index] = curves[index][: phase["from"]] + phase[name]
    return curves


def course_of(client: Client, workflow: str) -> dict[str, Any]:
    (course,) = client.get(f"/continual_lora/training?workflow={workflow}")["trainings"]
    return course


@pytest.fixture(scope="module")
def prompt(client: Client) -> dict[str, Any]:
    inputs = {"sequence_name": "courses", "steps": 12, "rank": 2, "recipe": "lora_ewc_dc"}
    prompt = only_training(load(client, "quickstart_cpu"), inputs)
    (options,) = of_kind(prompt, "ContinualLoRA_TrainOptions")
    prompt[options]["inputs"] |= {"fisher_draws": 4, "batch_size": 2}
    return prompt


def test_a_training_is_told_while_it_runs_and_kept_for_pages_that_come_later(
    client: Client, server: Server, prompt: dict[str, Any]
) -> None:
    told = watch(client, prompt, "one")
    assert {(news["workflow"], news["node"]) for news in told} == {("one", "train")}
    assert [news["state"] for news in told[:1] + told[-1:]] == ["running", "finished"]
    assert {news["state"] for news in told[:-1]} == {"running"} and len(told) > 3
    (log,) = (server.base / "output" / "continual_lora" / "courses" / "tasks").glob("*/log.json")
    losses = json.loads(log.read_text(encoding="utf-8"))["loss"]
    train, fisher = put_together(told, "loss")
    assert train == pytest.approx(losses, rel=1e-5) and len(fisher) == 2
    kept = course_of(client, "one")
    assert [phase["loss"] for phase in kept["phases"]] == [train, fisher]
    assert [phase["name"] for phase in kept["phases"]] == ["train", "fisher"]
    assert kept["node"] == "train" and kept["token"] == "my-fox" and kept["state"] == "finished"
    assert set(kept["figures"]) == {"adapter_norm", "dc_accuracy", "dc_entropy"}


def test_a_finished_task_is_shown_from_its_log(client: Client, prompt: dict[str, Any]) -> None:
    (number,) = of_kind(prompt, "ContinualLoRA_LoadConceptImages")
    changed = {**prompt, number: {**prompt[number], "inputs": {**prompt[number]["inputs"], "alpha": "mask"}}}
    watch(client, prompt, "before")
    told = watch(client, changed, "other")  # no image has transparent places: the same task, not from the host's cache
    before = course_of(client, "one")
    kept = course_of(client, "other")
    assert told[-1]["state"] == kept["state"] == "found"
    assert kept["phases"][0]["loss"] == before["phases"][0]["loss"]
    assert kept["figures"] == before["figures"]


def test_a_stopped_training_says_so_and_goes_on(client: Client, prompt: dict[str, Any]) -> None:
    inputs = {**prompt["train"]["inputs"], "sequence_name": "stopped course", "steps": 60, "recipe": "lora"}
    longer = {**prompt, "train": {**prompt["train"], "inputs": inputs}}

    def stop(news: dict[str, Any]) -> None:
        if news["state"] == "running" and any(phase["step"] >= 2 for phase in news["phases"]):
            client.interrupt()

    told = watch(client, longer, "stopped", stop)
    assert told[-1]["state"] == course_of(client, "stopped")["state"] == "interrupted"
    (first,) = put_together(told, "loss")
    assert 2 <= len(first) < 60
    (whole,) = put_together(watch(client, longer, "stopped"), "loss")
    assert len(whole) == 60 and whole[: len(first)] == first
    assert course_of(client, "stopped")["state"] == "finished"


def test_a_training_that_cannot_be_says_why(client: Client, prompt: dict[str, Any]) -> None:
    inputs = {**prompt["train"]["inputs"], "sequence_name": "a/b"}
    told = watch(client, {**prompt, "train": {**prompt["train"], "inputs": inputs}}, "failing")
    assert told[-1]["state"] == "failed" and told[-1]["message"].startswith('"sequence_name" should be')


def test_an_unknown_workflow_has_no_courses_and_no_picture(client: Client) -> None:
    for query in ("?workflow=../../x", "?workflow=%00%ff&node=1"):
        assert client.get(f"/continual_lora/training{query}") == {"trainings": []}
        with pytest.raises(urllib.error.HTTPError) as error:
            client.fetch(f"/continual_lora/training/picture{query}")
        assert error.value.code == 404
        error.value.close()


def test_the_chart_library_is_served_as_a_script_and_is_no_extension(client: Client) -> None:
    own = [path for path in client.get("/extensions") if "continual_lora" in path]
    assert any(path.endswith("/training_chart.js") for path in own)
    assert not [path for path in own if "/vendor/" in path]
    library = f"{client.url}/extensions/continual_lora/vendor/uplot/uPlot.min.mjs"
    with urllib.request.urlopen(library, timeout=60) as response:
        assert "javascript" in response.headers["Content-Type"]
