"""A thousand generated inputs for each node; run as a script outside the test process.

`python fuzz_nodes.py COMFYUI PARENT FOLDER`: PARENT holds the pack as `continual_lora`, FOLDER becomes the host's
input, output, embeddings and temp. Prints a JSON object: for each node how many inputs worked and how many were refused
in three facts, and every write outside FOLDER. Any other exception ends it.
"""

# ruff: noqa: TID251 (runs inside ComfyUI)

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

EXAMPLES = 1000
RARE = 200  # one in so many inputs of a node that trains or draws is whole
FEW: dict[str, Any] = {"steps": 1, "rank": 2, "recipe": "lora_ewc", "options": {"fisher_draws": 1}}
WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree"}


def watch(folder: Path) -> set[str]:
    """Collect what is written outside of `folder` from now on."""
    found: set[str] = set()
    inside = str(folder.resolve())

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened_to_write = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        # A path below an open folder is one that shutil.rmtree has named already.
        below = event in ("os.remove", "os.rmdir") and args[1] != -1
        if (event in WRITES and not below) or opened_to_write:
            for path in args[: 2 if event == "os.rename" else 1]:
                place = os.path.realpath(os.fspath(path)) if isinstance(path, str | bytes | os.PathLike) else inside
                if not str(place).startswith((inside, "/dev/")) and "__pycache__" not in str(place):
                    found.add(f"{event} {place}")

    sys.addaudithook(hook)
    return found


def damaged_copies(line: Any, folder: Path) -> list[Any]:
    """Sequences in which something is wrong on disk."""

    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-9])

    def copy(number: int, damage: Callable[[Path, Path], object]) -> Any:
        root = folder / f"damaged {number}"
        shutil.copytree(line.root, root)
        damage(root, root / "tasks" / line.tasks[-1].folder)
        return replace(line, root=root)

    damages: list[Callable[[Path, Path], object]] = [
        lambda root, task: cut(task / "lora.safetensors"),
        lambda root, task: cut(next((task / "embeddings").iterdir())),
        lambda root, task: cut(next((task / "images").iterdir())),
        lambda root, task: (task / "methods.safetensors").unlink(),
        lambda root, task: (task / "log.json").write_text("{"),
        lambda root, task: shutil.rmtree(task),
        lambda root, task: cut(root / "manifest.json"),
        lambda root, task: (root / "manifest.json").write_text(
            (root / "manifest.json").read_text().replace(task.name, "../../x")
        ),
        lambda root, task: (root / "manifest.json").unlink(),
    ]
    return [copy(number, damage) for number, damage in enumerate(damages, start=1)]


words = st.text(st.characters(exclude_categories=()), max_size=12)
names = words | st.sampled_from(["", "../../x", "CON", "a/b", "x.", "x" * 300, "\N{FOX FACE}", "\ud83d", "a\0b"])
whole, real = st.integers(), st.floats()
# Nothing between what is quick and what no widget allows.
wrong_whole = st.sampled_from([-1, 1 << 64, -(1 << 80)]) | st.integers(max_value=-1)
wrong_real = st.sampled_from([float("nan"), float("inf"), -1e9]) | st.floats(max_value=-11.0, allow_nan=False)


@dataclass
class Things:
    """What other nodes would bring.

    Attributes:
        models: MODEL, CLIP and VAE of the embedded base, by input.
        samples: three concepts.
        line: a sequence of two tasks.
        damaged: copies of it.
    """

    models: dict[str, Any]
    samples: list[Any]
    line: Any
    damaged: list[Any]


def furnish(folder: Path) -> Things:
    """Point the host at `folder`, and teach two concepts there."""
    import folder_paths
    from continual_lora import nodes
    from continual_lora.nodes import load_concept_images

    for name in ("input", "output", "temp", "embeddings", "output/loras", "input/pets"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder_paths.set_output_directory(str(folder / "output"))
    folder_paths.set_input_directory(str(folder / "input"))
    folder_paths.set_temp_directory(str(folder / "temp"))
    folder_paths.add_model_folder_path("embeddings", str(folder / "embeddings"), is_default=True)
    folder_paths.add_model_folder_path("loras", str(folder / "output" / "loras"), is_default=True)
    load_concept_images.PREVIEW_SIZE = 16  # it shows a thousand
    Image.effect_noise((9, 12), 80).save(folder / "input" / "pets" / "a.png")
    (folder / "input" / "pets" / "b.png").write_bytes(b"\x89PNG")
    (folder / "output" / "loras" / "broken.safetensors").write_bytes(bytes(20))
    models = dict(zip(("model", "clip", "vae"), nodes.LoadTinyBase.execute().result, strict=True))
    load = nodes.LoadConceptImages.execute
    samples = [load(f"bundled: {n}", n, "animal", "photo of a <{token}>")[0] for n in ("fox", "penguin", "guitar")]
    line = None
    for sample in samples[:2]:
        line = nodes.TrainContinualLora.execute(**models, concept=sample, sequence_name="pets", sequence=line, **FEW)[0]
    return Things(models, samples, line, damaged_copies(line, folder / "output" / "continual_lora"))


def rarely_whole(good: dict[str, Any], bad: dict[str, Any]) -> Any:
    """All inputs right once in a while, else one to three wrong: for nodes that train or draw."""

    @st.composite
    def draw_inputs(draw: Any) -> dict[str, Any]:
        values = {name: draw(kind) for name, kind in good.items()}
        if draw(st.sampled_from(range(RARE))):
            for name in draw(st.lists(st.sampled_from(sorted(bad)), min_size=1, max_size=3)):
                values[name] = draw(bad[name])
        return values

    return draw_inputs()


def just(values: dict[str, Any]) -> dict[str, Any]:
    """Each value as the only one there is."""
    return {name: st.just(value) for name, value in values.items()}


def batches() -> Any:
    """Images of any shape, of one number."""
    import torch

    shapes = st.lists(st.sampled_from([0, 1, 3, 4, 8, 9]), max_size=4) | st.sampled_from([[1, 9, 8, 3], [2, 8, 8, 4]])
    return st.builds(torch.full, shapes, st.floats(width=32))


def mostly(*good: Any, bad: Any) -> Any:
    """One of the good values three times out of four, else a bad one."""
    return st.sampled_from(range(4)).flatmap(lambda number: st.sampled_from(good) if number else bad)


def light(things: Things) -> Iterator[tuple[str, Any]]:
    """Inputs of the nodes that neither train nor draw."""
    lines = mostly(things.line, bad=st.sampled_from(things.damaged))
    patched = just({name: things.models[name] for name in ("model", "clip")})
    yield (
        "LoadConceptImages",
        st.fixed_dictionaries(
            {
                "folder": mostly(
                    "bundled: fox", "(use the images input)", bad=names | st.sampled_from(["pets", "/etc"])
                ),
                "token": mostly("fox", "<fox>", bad=names),
                "class_noun": mostly("animal", bad=names),
                "prompt": mostly("a <{token}>", bad=names),
                "name": mostly("", "\N{FOX FACE}", bad=names),
                "alpha": st.sampled_from(["composite", "mask"]),
                "images": st.none() | batches(),
            }
        ),
    )
    yield "TrainOptions", advanced_options()
    yield (
        "MergeConceptSequence",
        st.fixed_dictionaries(
            {
                **patched,
                "sequence": lines,
                "tasks": mostly("", "1", "1, 2", bad=names | st.sampled_from(["0", "3", "-1", "1.5"])),
                "strengths": mostly("", bad=names | st.sampled_from(["1", "1 0.5", "nan", "1e999 1"])),
                "method": mostly("cat", "svd", "linear", "ties", "dare_ties", bad=names),
                "rank": mostly(0, 1, bad=whole),
                "density": mostly(0.5, bad=real),
                "seed": mostly(0, bad=whole),
                "filename": mostly("merged", bad=names),
                "sequence_2": st.none() | lines,
            }
        ),
    )
    yield (
        "ApplyConceptSequence",
        st.fixed_dictionaries(
            {**patched, "sequence": lines, "up_to_task": mostly(0, 1, 2, bad=whole), "strength": mostly(1.0, bad=real)}
        ),
    )
    known = ["pets", "pets / x", "damaged 1", "damaged 7", "damaged 8", "..", "damaged 8 / y", ""]
    yield "LoadConceptSequence", st.fixed_dictionaries({"sequence_name": mostly(*known, bad=names)})
    yield "SaveConceptSequence", st.fixed_dictionaries({"sequence": lines, "filename": mostly("mine", bad=names)})


def advanced_options() -> Any:
    """Any of the advanced settings, of any kind."""
    from continual_lora.trainer.settings import TrainSettings

    advanced = [item.name for item in fields(TrainSettings) if item.metadata.get("advanced")]
    return st.dictionaries(st.sampled_from(advanced), st.none() | st.booleans() | whole | real | names, max_size=4)


def heavy(things: Things) -> Iterator[tuple[str, Any]]:
    """Inputs of the nodes that train or draw."""
    import torch

    damaged, models = st.sampled_from(things.damaged), just(things.models)
    wrong_options = advanced_options().map(lambda values: {**values, "batch_size": ""})
    yield (
        "TrainContinualLora",
        rarely_whole(
            {
                **models,
                **just(FEW),
                "concept": st.just(things.samples[2]),
                "sequence_name": st.sampled_from(["a", "\N{FOX FACE}"]),
                "sequence": st.sampled_from([None, things.line]),
                "existing_lora": st.just("[None]"),
                "seed": st.integers(0, 3),
            },
            {
                **dict.fromkeys(("steps", "rank", "seed"), wrong_whole),
                **dict.fromkeys(("learning_rate", "penalty_weight"), wrong_real),
                "recipe": names,
                "sequence": damaged,
                "options": wrong_options,
                "existing_lora": names | st.just("broken.safetensors"),
            },
        ),
    )
    yield (
        "DiffusionClassifierScore",
        rarely_whole(
            {
                **models,
                **just({"images": torch.rand(1, 9, 8, 3), "trials": 1, "resolution": 0}),
                "prompts": st.sampled_from(["a cat\na dog", "\N{FOX FACE}\n()((\n<fox>"]),
                "pruning": st.booleans(),
                "temperature": st.sampled_from([0.0, 0.1]),
                "seed": st.integers(0, 3),
                "sequence": st.sampled_from([None, things.line]),
            },
            {
                "images": batches().filter(lambda batch: batch.dim() != 4 or batch.numel() < 9 * 8),
                "prompts": st.sampled_from(["", "one", "\ud83d\na", "a\0\nb"]),
                **dict.fromkeys(("trials", "seed"), wrong_whole),
                "temperature": wrong_real,
                "resolution": wrong_whole | st.just(60),
                "sequence": damaged,
            },
        ),
    )
    yield (
        "EvaluateConceptSequence",
        rarely_whole(
            {
                **models,
                **just({"sequence": things.line, "images": 2, "seed": 0, "steps": 1, "cfg": 2.0, "resolution": 0}),
                **just({"sampler_name": "ddim", "scheduler": "normal"}),
                **just({"open_clip_weights": "", "open_clip_architecture": "ViT-B-32"}),
                **dict.fromkeys(("dc_trials", "spectrum_draws"), st.sampled_from([0, 1])),
            },
            {
                "sequence": damaged,
                **dict.fromkeys(("images", "steps", "seed", "dc_trials", "spectrum_draws"), wrong_whole),
                "resolution": wrong_whole | st.just(60),
                "cfg": wrong_real,
                **dict.fromkeys(("sampler_name", "scheduler"), names),
                "open_clip_weights": st.sampled_from(["no-such-tag", "/no/such.safetensors", "a\0b"]),
            },
        ),
    )


def run(node: Any, generated: Any) -> Counter[str]:
    """How many inputs of one node worked, how many were refused, and how long all took."""
    from continual_lora.trainer.errors import ContinualLoraError

    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # a smaller failing input is not worth the time
        suppress_health_check=list(HealthCheck),
    )
    @given(generated)
    def each(values: dict[str, Any]) -> None:
        try:
            node.execute(**values)
            outcomes["worked"] += 1
        except ContinualLoraError as error:
            assert str(error).encode()  # it can be shown
            outcomes["refused"] += 1

    start = time.monotonic()
    each()
    outcomes["milliseconds"] = round(1000 * (time.monotonic() - start))
    sys.stderr.write(f"{node.__name__}: {dict(outcomes)}\n")
    return outcomes


def fuzz(folder: Path) -> dict[str, Counter[str]]:
    """All nodes but Load Tiny Base, which has no input."""
    from continual_lora import nodes

    things = furnish(folder)
    return {name: run(getattr(nodes, name), generated) for name, generated in (*light(things), *heavy(things))}


if __name__ == "__main__":
    from as_host import become_host

    tempfile.tempdir = sys.argv[3]  # torch writes there, but where the process of the tests has told it to
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    _, _, folder = become_host()
    import torch

    torch.set_num_threads(1)
    set_hypothesis_home_dir(Path(folder) / "hypothesis")  # it keeps tables of characters
    outside = watch(Path(folder))
    with torch.inference_mode():  # as nodes run
        found = fuzz(Path(folder))
    sys.stdout.write("\n" + json.dumps({"nodes": found, "outside": sorted(outside)}))
