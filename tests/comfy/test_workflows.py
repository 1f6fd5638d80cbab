"""The bundled workflows, run to the end in a real server, as the page would queue them."""

import copy
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from scripts.graph import Graph
from scripts.workflows import WORKFLOWS
from tests.server import Client, Server

from .test_cli import cli
from .workflow import to_prompt

ROOT = Path(__file__).parents[2]
STEPS = 3


def load(client: Client, name: str) -> dict[str, Any]:
    """A bundled workflow in the API format."""
    workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return to_prompt(workflow, client.object_info())


def of_kind(prompt: dict[str, Any], kind: str) -> list[str]:
    """Ids of the nodes of a class, in the order of the workflow."""
    return [number for number, node in prompt.items() if node["class_type"] == kind]


def shortened(prompt: dict[str, Any], sequence: str, checkpoint: str = "") -> dict[str, Any]:
    """The same graph with few steps; on a checkpoint also small images. What is under test stays as it is."""
    prompt = copy.deepcopy(prompt)
    for number, name in zip(of_kind(prompt, "ContinualLoRA_Train"), "abcdefghi", strict=False):
        prompt[number]["inputs"] |= {"steps": STEPS, "sequence_name": f"{sequence} {name}", "rank": 2}
    for number in of_kind(prompt, "KSampler"):
        prompt[number]["inputs"]["steps"] = 1
    for number in of_kind(prompt, "ContinualLoRA_ClassifierScore"):
        prompt[number]["inputs"]["trials"] = 2
    for number in of_kind(prompt, "ContinualLoRA_EvaluateSequence"):
        prompt[number]["inputs"] |= {"images": 2, "steps": 1, "dc_trials": 2}
    options = of_kind(prompt, "ContinualLoRA_TrainOptions")
    if checkpoint:
        for number in of_kind(prompt, "CheckpointLoaderSimple"):
            prompt[number]["inputs"]["ckpt_name"] = checkpoint
        for number in of_kind(prompt, "EmptyLatentImage"):
            prompt[number]["inputs"] |= {"width": 64, "height": 64, "batch_size": 1}
        if not options:
            prompt["options"] = {"class_type": "ContinualLoRA_TrainOptions", "inputs": defaults_of_options()}
            for number in of_kind(prompt, "ContinualLoRA_Train"):
                prompt[number]["inputs"]["options"] = ["options", 0]
            options = ["options"]
        prompt[options[0]]["inputs"] |= {"resolution": 64, "batch_size": 1}
    for number in options:
        prompt[number]["inputs"] |= {"fisher_draws": 4}
    return prompt


def defaults_of_options() -> dict[str, Any]:
    from dataclasses import fields

    from trainer.settings import TrainSettings

    return {item.name: item.default for item in fields(TrainSettings) if item.metadata.get("advanced")}


def run(client: Client, prompt: dict[str, Any], timeout: float = 600) -> Any:
    done = client.run(prompt, timeout)
    assert done.status == "success", done.error
    return done


def sequence_folder(server: Server, name: str) -> Path:
    return server.base / "output" / "continual_lora" / name


def picture(client: Client, image: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(client.view(image))).convert("RGB")


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.tensor(list(image.tobytes()))


def complaints(server: Server, start: int) -> list[str]:
    words = ("lora key not loaded", "NOT LOADED", "Traceback", "does not exist")
    return [line for line in server.log[start:].splitlines() if any(word in line for word in words)]


def test_no_widget_of_a_template_is_stale(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our nodes are in the bundled files as the script writes them for the running server."""
    monkeypatch.setattr("scripts.graph.FOLDER", tmp_path)
    info = client.object_info()
    for write in WORKFLOWS:
        write(Graph(info))
    names = {path.name for path in (ROOT / "workflows").glob("*.json")}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        stored, written = (
            [node for node in json.loads((folder / name).read_text(encoding="utf-8"))["nodes"] if is_ours(node)]
            for folder in (ROOT / "workflows", tmp_path)
        )
        assert stored == written, f"{name}: run `python -m scripts.workflows` (see there)"


def is_ours(node: dict[str, Any]) -> bool:
    return bool(node["type"].startswith("ContinualLoRA_"))


def test_quickstart_teaches_draws_and_scores(client: Client, server: Server) -> None:
    start, prompt = len(server.log), shortened(load(client, "quickstart_cpu"), "quick")
    done = run(client, prompt)
    assert complaints(server, start) == []
    manifest = json.loads((sequence_folder(server, "quick a") / "manifest.json").read_text())
    assert [task["token"] for task in manifest["tasks"].values()] == ["my-fox", "my-sunflower"]
    for number in of_kind(prompt, "SaveImage"):
        images = done.outputs[number]["images"]
        assert len(images) == 4
        for image in images:
            shown = picture(client, image)
            assert shown.size == (64, 64)
            assert len(shown.getcolors(4096) or range(4096)) > 16  # not one flat color
    (score,) = of_kind(prompt, "ContinualLoRA_ClassifierScore")
    candidates = {"photo of a <my-fox> animal", "photo of a <my-sunflower> plant", "photo of a person"}
    assert len(done.outputs[score]["text"]) == 4
    assert set(done.outputs[score]["text"]) <= candidates


def test_queueing_again_trains_nothing(client: Client, server: Server) -> None:
    prompt = shortened(load(client, "quickstart_cpu"), "again")
    run(client, prompt)
    files = {p: p.stat().st_mtime_ns for p in sequence_folder(server, "again a").rglob("*") if p.is_file()}
    client.free()
    run(client, prompt)
    assert {p: p.stat().st_mtime_ns for p in files} == files


VECTORS = {"sd15": {"clip_l"}, "sd2": {"clip_h"}, "sdxl": {"clip_l", "clip_g"}, "sd3": {"clip_l", "clip_g"}}


@pytest.mark.parametrize("family", VECTORS)
def test_sequential_sd15_leaves_a_lora_that_core_loads(
    client: Client, server: Server, family: str, comfy_path: Path, request: pytest.FixtureRequest
) -> None:
    """The workflow on every family: one picture by our nodes, and by the core's with the saved files."""
    start, file = len(server.log), request.getfixturevalue(f"{family}_checkpoint")
    prompt = shortened(load(client, "sequential_concepts_sd15"), family, file)
    for number in of_kind(prompt, "ContinualLoRA_SaveSequence"):
        prompt[number]["inputs"]["filename"] = f"three_{family}"
    (saver,) = of_kind(prompt, "ContinualLoRA_SaveSequence")
    path, fox_embedding, *_ = run(client, prompt).outputs[saver]["text"]
    saved = Path(path)
    assert saved.name == f"three_{family}.safetensors" and len(load_file(saved)) % 3 == 0
    embedding_file = fox_embedding.removeprefix("embedding:") + ".safetensors"
    vectors = load_file(server.base / "models" / "embeddings" / embedding_file)
    assert set(vectors) == VECTORS[family]
    (sampler, _) = of_kind(prompt, "KSampler")
    loaded = copy.deepcopy(prompt)
    (loader,) = of_kind(prompt, "CheckpointLoaderSimple")
    inputs = {"model": [loader, 0], "clip": [loader, 1], "lora_name": saved.name, "strength_model": 1.0}
    loaded["lora"] = {"class_type": "LoraLoader", "inputs": {**inputs, "strength_clip": 1.0}}
    for number in of_kind(loaded, "CLIPTextEncode"):
        text = loaded[number]["inputs"]["text"].replace("<my-fox>", fox_embedding)
        loaded[number]["inputs"] |= {"clip": ["lora", 1], "text": text}
    loaded[sampler]["inputs"]["model"] = ["lora", 0]
    for number in (n for n, node in prompt.items() if node["class_type"].startswith("ContinualLoRA_")):
        del loaded[number]
    second = of_kind(loaded, "KSampler")[1]
    for number in [second, *of_kind(loaded, "SaveImage")[1:], *of_kind(loaded, "VAEDecode")[1:]]:
        del loaded[number]
    ours, theirs = run(client, prompt).outputs, run(client, loaded).outputs
    (fox, *_) = of_kind(prompt, "SaveImage")
    checkpoint = ["--comfyui", comfy_path, "--checkpoint", ROOT / "build" / "checkpoints" / file]
    diffusers, comfyui = (
        saved.with_name(f"three_{family}_{layout}.safetensors") for layout in ("diffusers", "comfyui")
    )
    cli("convert", saved, "--to", "diffusers", "--out", diffusers, *checkpoint)
    cli("convert", diffusers, "--to", "comfyui", "--out", comfyui, *checkpoint)
    loaded["lora"]["inputs"]["lora_name"] = comfyui.name
    in_other_keys = run(client, loaded).outputs
    same = [pixels_of(picture(client, out[fox]["images"][0])) for out in (ours, theirs, in_other_keys)]
    assert (same[0] - same[1]).abs().max() <= 1 and same[1].equal(same[2])
    assert complaints(server, start) == []


def test_multi_concept_sd15_merges(client: Client, server: Server, sd15_checkpoint: str) -> None:
    start = len(server.log)
    prompt = shortened(load(client, "multi_concept_sd15"), "multi", sd15_checkpoint)
    done = run(client, prompt)
    (merge,) = of_kind(prompt, "ContinualLoRA_MergeSequence")
    lora = load_file(done.outputs[merge]["text"][0])
    assert {len(v) for k, v in lora.items() if k.endswith("lora_down.weight")} == {4}  # cat: 2 + 2
    assert complaints(server, start) == []


def test_sequential_sdxl_draws_before_and_after(client: Client, server: Server, sdxl_checkpoint: str) -> None:
    start = len(server.log)
    prompt = shortened(load(client, "sequential_concepts_sdxl"), "xl", sdxl_checkpoint)
    for number in of_kind(prompt, "ContinualLoRA_Train"):
        prompt[number]["inputs"]["steps"] = 1
    for number in of_kind(prompt, "ContinualLoRA_TrainOptions"):
        prompt[number]["inputs"] |= {"fisher_draws": 1}
    done = run(client, prompt, timeout=1200)
    manifest = json.loads((sequence_folder(server, "xl a") / "manifest.json").read_text())
    tasks = list(manifest["tasks"].values())
    assert [task["token"] for task in tasks] == ["my-penguin", "my-guitar"]
    assert all(task["settings"]["gradient_checkpointing"] for task in tasks)
    before, after = (done.outputs[number]["images"] for number in of_kind(prompt, "SaveImage"))
    assert [picture(client, image).size for image in (*before, *after)] == [(64, 64), (64, 64)]
    (saver,) = of_kind(prompt, "ContinualLoRA_SaveSequence")
    assert Path(done.outputs[saver]["text"][0]).name == "two_concepts_sdxl.safetensors"
    assert complaints(server, start) == []


def test_which_forgets_least_compares_three_recipes(client: Client, server: Server) -> None:
    start, prompt = len(server.log), shortened(load(client, "which_method_forgets_least_cpu"), "least")
    done = run(client, prompt, timeout=1200)
    recipes = []
    for name in "adg":
        manifest = json.loads((sequence_folder(server, f"least {name}") / "manifest.json").read_text())
        tasks = list(manifest["tasks"].values())
        assert [task["token"] for task in tasks] == ["my-fox", "my-sunflower", "my-guitar"]
        recipes.append({task["recipe"] for task in tasks})
    assert recipes == [{"lora"}, {"lora_ewc_dc"}, {"lora_dsc_ewc"}]
    shown = [done.outputs[number]["images"] for number in of_kind(prompt, "PreviewImage")]
    assert len(shown) == 6 and all(min(picture(client, image).size) > 50 for (image,) in shown)
    tables = [done.outputs[number]["text"][0] for number in of_kind(prompt, "PreviewAny")]
    assert len(tables) == 3 and all("EfficientNet-Lite0" in table and "dc_accuracy" in table for table in tables)
    assert complaints(server, start) == []


def test_classify_shows_answers_and_scores(client: Client, server: Server) -> None:
    start, prompt = len(server.log), shortened(load(client, "classify_with_dc_scores_cpu"), "unused")
    done = run(client, prompt)
    (score,) = of_kind(prompt, "ContinualLoRA_ClassifierScore")
    candidates = prompt[score]["inputs"]["prompts"].splitlines()
    answers, scores = (done.outputs[number]["text"][0] for number in of_kind(prompt, "PreviewAny"))
    assert answers.splitlines() == done.outputs[score]["text"] and len(answers.splitlines()) == 4
    for answer, table in zip(answers.splitlines(), json.loads(scores), strict=True):
        assert list(table) == candidates and sum(table.values()) == pytest.approx(1, abs=1e-4)
        assert table[answer] == max(table.values())
    assert complaints(server, start) == []


@pytest.fixture
def long_training(client: Client) -> dict[str, Any]:
    """The first training of the quickstart alone, longer than the test waits."""
    prompt = shortened(load(client, "quickstart_cpu"), "long")
    first, second = of_kind(prompt, "ContinualLoRA_Train")
    (options,) = of_kind(prompt, "ContinualLoRA_TrainOptions")
    prompt[first]["inputs"]["steps"] = 60
    prompt[options]["inputs"]["checkpoint_every"] = 5
    keep = {first, options, *of_kind(prompt, "ContinualLoRA_LoadTinyBase"), prompt[first]["inputs"]["concept"][0]}
    assert second not in keep
    return {number: node for number, node in prompt.items() if number in keep}


def test_interrupt_stops_at_once_and_queueing_again_resumes(
    client: Client, server: Server, long_training: dict[str, Any]
) -> None:
    prompt_id = client.queue(long_training)
    partial = sequence_folder(server, "long a") / "partial"
    wait_until(lambda: list(partial.glob("*.safetensors")), 300)
    client.interrupt()
    done = client.wait(prompt_id)
    assert done.interrupted
    (file,) = partial.glob("*.safetensors")
    assert 5 <= int(load_file(file)["step"]) < 60
    run(client, long_training)
    assert not list(partial.glob("*.safetensors"))
    (task,) = (sequence_folder(server, "long a") / "tasks").iterdir()
    assert len(json.loads((task / "log.json").read_text())["loss"]) == 60


def test_interrupt_takes_effect_before_the_running_step_ends(
    client: Client, server: Server, sd15_checkpoint: str
) -> None:
    prompt = shortened(load(client, "sequential_concepts_sd15"), "slow", sd15_checkpoint)
    first = of_kind(prompt, "ContinualLoRA_Train")[0]
    prompt[first]["inputs"]["steps"] = 100
    prompt["options"]["inputs"] |= {"resolution": 256, "batch_size": 2, "checkpoint_every": 1}
    keep = {first, "options", *of_kind(prompt, "CheckpointLoaderSimple"), prompt[first]["inputs"]["concept"][0]}
    prompt_id = client.queue({number: node for number, node in prompt.items() if number in keep})
    folder = sequence_folder(server, "slow a") / "partial"
    ends: list[int] = []

    def steps_ended(count: int) -> bool:
        times = {path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} - set(ends)
        ends.extend(times)
        return len(ends) >= count

    wait_until(lambda: steps_ended(3), 300)
    step_time = (ends[2] - ends[1]) / 1e9
    time.sleep(0.2 * step_time)
    client.interrupt()
    assert client.wait(prompt_id).interrupted
    (file,) = folder.glob("*.safetensors")
    assert int(load_file(file)["step"]) == len(ends)  # every step is kept, so the running one did not end


def wait_until(condition: Any, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ContinualLoRA_LoadConceptImages": {"token": "my fox"}}, "A token is 1 to 64 characters long"),
        ({"ContinualLoRA_LoadConceptImages": {"prompt": "photo of a fox"}}, "must contain its token"),
        ({"ContinualLoRA_LoadConceptImages": {"folder": "(use the images input)"}}, 'either from "folder" or'),
        ({"ContinualLoRA_TrainOptions": {"resolution": 65}}, "multiple of 8"),
        ({"ContinualLoRA_Train": {"sequence_name": "../other"}}, "plain file name"),
    ],
)
def test_wrong_input_is_said_on_the_node(
    client: Client, long_training: dict[str, Any], change: dict[str, dict[str, Any]], expected: str
) -> None:
    for kind, values in change.items():
        for number in of_kind(long_training, kind):
            long_training[number]["inputs"] |= values
    done = client.run(long_training)
    assert done.status == "error"
    assert done.error is not None
    assert expected in done.error["exception_message"]


def test_shared_model_is_as_it_was_after_training(client: Client, server: Server) -> None:
    """The same base, seed and prompt give the same picture before and after a training on it."""
    prompt = shortened(load(client, "quickstart_cpu"), "shared")
    (base,) = of_kind(prompt, "ContinualLoRA_LoadTinyBase")
    sampler = of_kind(prompt, "KSampler")[0]
    alone = {number: node for number, node in prompt.items() if not node["class_type"].startswith("ContinualLoRA_")}
    alone[base] = prompt[base]
    for number in of_kind(alone, "CLIPTextEncode"):
        alone[number]["inputs"] |= {"clip": [base, 1], "text": "noto cat"}
    for number in of_kind(alone, "KSampler"):
        alone[number]["inputs"] |= {"model": [base, 0], "steps": 2}
    for number in of_kind(alone, "PreviewImage"):
        del alone[number]
    (saver, *_) = of_kind(alone, "SaveImage")

    def drawn(seed: int) -> bytes:
        alone[sampler]["inputs"]["seed"] = seed
        return picture(client, run(client, alone).outputs[saver]["images"][0]).tobytes()

    before = drawn(11)
    run(client, prompt)
    drawn(12)  # so that 11 is not answered from the cache
    assert drawn(11) == before


def evaluation_of(prompt: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same graph with Evaluate Concept Sequence behind the last training, and no other output."""
    (base,) = of_kind(prompt, "ContinualLoRA_LoadTinyBase") or of_kind(prompt, "CheckpointLoaderSimple")
    kept = ("ContinualLoRA_Load", "ContinualLoRA_Train", "CheckpointLoader")
    graph = {number: node for number, node in prompt.items() if node["class_type"].startswith(kept)}
    inputs = {"model": [base, 0], "clip": [base, 1], "vae": [base, 2], "images": 2, "seed": 3, "steps": 2, "cfg": 2.0}
    inputs |= {"sequence": [of_kind(prompt, "ContinualLoRA_Train")[-1], 0], "dc_trials": 2, "spectrum_draws": 4}
    inputs |= {"sampler_name": "ddim", "scheduler": "normal", "resolution": 64, "open_clip_weights": ""}
    inputs |= {"open_clip_architecture": "ViT-B-32", **changes}
    graph["evaluate"] = {"class_type": "ContinualLoRA_EvaluateSequence", "inputs": inputs}
    for number, output in enumerate(("sheet", "heat map", "curves")):
        shown = {"images": ["evaluate", number]}
        graph[output] = {"class_type": "PreviewImage", "inputs": shown}
    return graph


def test_evaluation_draws_once_and_reports(client: Client, server: Server) -> None:
    start, prompt = len(server.log), shortened(load(client, "quickstart_cpu"), "judged")
    done = run(client, evaluation_of(prompt))
    report = Path(done.outputs["evaluate"]["text"][0])
    page = report.read_text(encoding="utf-8")
    assert "EfficientNet-Lite0" in page and "L_den + CE" in page and "tell its concepts apart" in page
    sizes = [picture(client, done.outputs[name]["images"][0]).size for name in ("sheet", "heat map", "curves")]
    assert sizes[0][0] > 2 * 192 and sizes[0][1] > 3 * 192 and all(min(size) > 50 for size in sizes)
    rows = (report.parent / "table.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 3  # fox after fox, both after sunflower
    drawn = {p: p.stat().st_mtime_ns for p in (report.parents[2]).rglob("0*.png")}
    assert len(drawn) == 3 * 2
    client.free()
    run(client, evaluation_of(prompt, dc_trials=0, spectrum_draws=0))
    assert {p: p.stat().st_mtime_ns for p in report.parents[2].rglob("0*.png")} == drawn
    assert complaints(server, start) == []


def test_an_evaluation_draws_what_ksampler_draws(client: Client, server: Server) -> None:
    """With the model after the last task: the pictures on disk are those of the core's own nodes."""
    prompt = shortened(load(client, "quickstart_cpu"), "drawn")
    done = run(client, evaluation_of(prompt, dc_trials=0, spectrum_draws=0))
    folder = Path(done.outputs["evaluate"]["text"][0]).parents[2]
    sampler = of_kind(prompt, "KSampler")[0]
    prompt[sampler]["inputs"] |= {"seed": 3, "steps": 2, "cfg": 2.0, "sampler_name": "ddim", "scheduler": "normal"}
    for number in of_kind(prompt, "EmptyLatentImage"):
        prompt[number]["inputs"]["batch_size"] = 2
    core = run(client, prompt).outputs[of_kind(prompt, "SaveImage")[0]]["images"]
    (cell,) = (path for path in folder.glob("02-*/01-my-fox-*") if path.is_dir())
    for ours, theirs in zip(sorted(cell.glob("*.png")), core, strict=True):
        pair = [torch.tensor(list(p.tobytes()), dtype=torch.int) for p in (Image.open(ours), picture(client, theirs))]
        assert (pair[0] - pair[1]).abs().max() <= 1


def test_evaluation_on_a_checkpoint(client: Client, server: Server, sd15_checkpoint: str) -> None:
    start = len(server.log)
    prompt = shortened(load(client, "sequential_concepts_sd15"), "judged sd", sd15_checkpoint)
    done = run(client, evaluation_of(prompt))
    assert Path(done.outputs["evaluate"]["text"][0]).is_file() and complaints(server, start) == []
