"""Write the bundled workflows in the format that ComfyUI's page saves: `python -m scripts.workflows OBJECT_INFO.json`.

The argument is what a running server answers at /object_info; sockets and widgets come from there. The thumbnails are
made by `scripts/pictures.py`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from trainer.cli.demo import TINY_SETTINGS

from .graph import FOLDER, PREFIX, Graph, Node

SD15, SDXL = "v1-5-pruned-emaonly.safetensors", "sd_xl_base_1.0.safetensors"
COLUMN, COLUMN_STEP = 420, 420  # where the first training stands, and how far the next
IMAGES_Y, TRAIN_Y, ROW_STEP = 60, 800, 940
DRAW_WIDTH, DRAW_STEP = 1060, 520
BASIC = ("recipe", "steps", "rank", "learning_rate", "penalty_weight")
ADVANCED = ("batch_size", "token_learning_rate", "schedule", "low_memory")
TINY = {name: getattr(TINY_SETTINGS, name) for name in BASIC}
TINY_OPTIONS = {name: getattr(TINY_SETTINGS, name) for name in ADVANCED}
Outputs = list[tuple[Node, int]]  # MODEL, CLIP, VAE


def tiny_base(graph: Graph) -> tuple[Node, Outputs]:
    """Load Tiny Base, and its three outputs."""
    base = graph.add(f"{PREFIX}LoadTinyBase", (0, 60), (320, 90))
    return base, [(base, 0), (base, 1), (base, 2)]


def checkpoint(graph: Graph, name: str) -> tuple[Node, Outputs]:
    """Load Checkpoint, and its three outputs."""
    base = graph.add("CheckpointLoaderSimple", (0, 60), (340, 110), ckpt_name=name)
    return base, [(base, 0), (base, 1), (base, 2)]


def options(graph: Graph, values: dict[str, Any], y: int = 260) -> Node:
    """Continual LoRA Options; nothing stands below it, since it grows with the settings."""
    return graph.add(f"{PREFIX}TrainOptions", (0, y), (340, 520), **values)


def images_of(graph: Graph, name: str, noun: str, x: int) -> Node:
    """Load Concept Images with a bundled sample."""
    words = {"token": f"my-{name}", "class_noun": noun}
    return graph.add(f"{PREFIX}LoadConceptImages", (x, IMAGES_Y), (360, 640), folder=f"bundled: {name}", **words)


def train(graph: Graph, models: Outputs, concept: Node, pos: tuple[int, int], **values: Any) -> Node:
    """Train Continual LoRA; sockets that come from nowhere are None."""
    model, clip, vae = models
    links = {"model": model, "clip": clip, "vae": vae, "concept": (concept, 0)}
    return graph.add(f"{PREFIX}Train", pos, (360, 380), **links, **values)


def teach_in_turn(
    graph: Graph, models: Outputs, concepts: dict[str, str], settings: dict[str, Any]
) -> tuple[list[Node], int]:
    """One training after another on bundled samples, name -> class noun; the trainings, and where space begins."""
    trains: list[Node] = []
    x, loaders = COLUMN, []
    for name, noun in concepts.items():
        loaders.append(images_of(graph, name, noun, x))
        before = (trains[-1], 0) if trains else None
        trains.append(train(graph, models, loaders[-1], (x, TRAIN_Y), sequence=before, **settings))
        x += COLUMN_STEP
    graph.group("Teach one concept after another", [*loaders, *trains], "#88a")
    return trains, x


def draw(
    graph: Graph,
    title: str,
    models: Outputs,
    pos: tuple[int, int],
    prompt: str,
    size: int,
    count: int = 4,
    **sampler: Any,
) -> Node:
    """Prompt to saved image, in a group; returns the node with the images."""
    x, y = pos
    model, clip, vae = models
    first = len(graph.nodes)
    wanted = graph.add("CLIPTextEncode", (x, y), (300, 100), text=prompt, clip=clip)
    empty = graph.add("CLIPTextEncode", (x, y + 150), (300, 90), title="Empty prompt", text="", clip=clip)
    latent = graph.add("EmptyLatentImage", (x, y + 290), (300, 110), width=size, height=size, batch_size=count)
    chosen = {"steps": 25, "cfg": 2.0, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0, **sampler}
    links = {"positive": (wanted, 0), "negative": (empty, 0), "latent_image": (latent, 0)}
    samples = graph.add("KSampler", (x + 340, y), (300, 270), model=model, seed=1, **links, **chosen)
    images = graph.add("VAEDecode", (x + 340, y + 340), (300, 60), samples=(samples, 0), vae=vae)
    graph.add("SaveImage", (x + 680, y), (320, 400), images=(images, 0), filename_prefix="continual_lora/image")
    graph.group(title, graph.nodes[first:], "#8a8")
    return images


def quickstart(graph: Graph) -> None:
    """Two bundled concepts on the embedded base, both drawn, and scored."""
    base, models = tiny_base(graph)
    advanced = options(graph, TINY_OPTIONS)
    graph.group("The base and its settings", [base, advanced])
    settings = {"sequence_name": "quickstart", **TINY, "options": (advanced, 0)}
    (*_, last), x = teach_in_turn(graph, models, {"fox": "animal", "sunflower": "plant"}, settings)
    taught = [(last, 1), (last, 2), models[2]]
    fox = draw(graph, "Draw the first concept", taught, (x, 60), "photo of a <my-fox> animal", 64)
    prompt = "photo of a <my-sunflower> plant"
    draw(graph, "Draw the second concept", taught, (x, 60 + DRAW_STEP), prompt, 64)
    x += DRAW_WIDTH
    links = {"model": models[0], "clip": models[1], "vae": models[2], "images": (fox, 0), "sequence": (last, 0)}
    score = graph.add(f"{PREFIX}ClassifierScore", (x, 60), (380, 300), prompts="photo of a person", **links)
    chart = graph.add("PreviewImage", (x, 430), (380, 490), images=(score, 2))
    graph.group("Which concept do the foxes show?", [score, chart], "#a88")
    graph.note(
        "**Quickstart: no download, no GPU needed, about two minutes.**\n\n"
        "1. Teaches the small bundled model a fox, then a sunflower.\n"
        "2. Draws both with the model as it is after the second: the fox is still there.\n"
        "3. Asks the model which concept its own fox images show.\n\n"
        "Running it again trains nothing anew.",
    )
    graph.save("quickstart_cpu")


def sequential_sd15(graph: Graph) -> None:
    """Three concepts on an SD 1.5 checkpoint."""
    base, models = checkpoint(graph, SD15)
    graph.group("Your checkpoint", [base])
    concepts = {"fox": "animal", "guitar": "instrument", "hamburger": "food"}
    (*_, last), x = teach_in_turn(graph, models, concepts, {"sequence_name": "three concepts"})
    taught = [(last, 1), (last, 2), models[2]]
    draw(graph, "Draw the first concept", taught, (x, 60), "photo of a <my-fox> animal", 512, cfg=7.0)
    prompt = "photo of a <my-hamburger> food"
    draw(graph, "Draw the last concept", taught, (x, 60 + DRAW_STEP), prompt, 512, cfg=7.0)
    pos = (x, 60 + 2 * DRAW_STEP)
    saved = graph.add(f"{PREFIX}SaveSequence", pos, (340, 120), sequence=(last, 0), filename="three_concepts")
    graph.group("For other tools", [saved], "#a88")
    graph.note(
        "**Three concepts, one LoRA (Stable Diffusion 1.5).**\n\n"
        "1. Choose your checkpoint, and a folder of your own images in each Load Concept Images.\n"
        "2. Each training goes on from the one before it.\n"
        "3. Save Concept Sequence writes the LoRA and the tokens for other tools.\n\n"
        "Stop whenever you like: queueing again goes on where it stopped.",
    )
    graph.save("sequential_concepts_sd15")


def sequential_sdxl(graph: Graph) -> None:
    """Two concepts on an SDXL checkpoint; the first one drawn as it was, and as it is now."""
    base, models = checkpoint(graph, SDXL)
    advanced = options(graph, {"batch_size": 1, "gradient_accumulation": 2, "gradient_checkpointing": True})
    graph.group("Your checkpoint and the settings", [base, advanced])
    settings = {"sequence_name": "two concepts SDXL", "options": (advanced, 0)}
    (*_, last), x = teach_in_turn(graph, models, {"penguin": "bird", "guitar": "instrument"}, settings)
    links = {"model": models[0], "clip": models[1], "sequence": (last, 0)}
    before = graph.add(f"{PREFIX}ApplySequence", (x, 60), (340, 150), up_to_task=1, **links)
    saved = graph.add(f"{PREFIX}SaveSequence", (x, 300), (340, 120), sequence=(last, 0), filename="two_concepts_sdxl")
    graph.group("Look back, and save", [before, saved], "#a88")
    x += COLUMN_STEP
    sampler = {"count": 2, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    prompt, then = "photo of a <my-penguin> bird", [(before, 0), (before, 1), models[2]]
    draw(graph, "The first concept, right after its task", then, (x, 60), prompt, 1024, **sampler)
    now = [(last, 1), (last, 2), models[2]]
    draw(graph, "The first concept, after the last task", now, (x, 60 + DRAW_STEP), prompt, 1024, **sampler)
    graph.note(
        "**Two concepts, one LoRA (SDXL).**\n\n"
        "1. Choose your checkpoint, and a folder of your own images in each Load Concept Images.\n"
        "2. Options are set for little memory: one image a pass, two passes a step.\n"
        "3. Apply Concept Sequence is the model as it was after task 1; compare both pictures.\n\n"
        "Save Concept Sequence writes the LoRA and the tokens for other tools.",
    )
    graph.save("sequential_concepts_sdxl")


def multi_concept(graph: Graph) -> None:
    """Two sequences, merged, in one picture."""
    base, models = checkpoint(graph, SD15)
    graph.group("Your checkpoint", [base])
    trains, x = [], COLUMN
    for name, noun in (("penguin", "bird"), ("sunflower", "plant")):
        loader = images_of(graph, name, noun, x)
        trains.append(train(graph, models, loader, (x, TRAIN_Y), sequence_name=f"only {name}"))
        graph.group(f"A sequence of its own: {name}", [loader, trains[-1]], "#88a")
        x += COLUMN_STEP
    links = {"model": models[0], "clip": models[1], "sequence": (trains[0], 0), "sequence_2": (trains[1], 0)}
    merged = graph.add(f"{PREFIX}MergeSequence", (x, 60), (360, 420), filename="penguin_and_sunflower", **links)
    graph.group("Merge", [merged], "#a88")
    taught = [(merged, 1), (merged, 2), models[2]]
    prompt = "A photo of <my-penguin> bird. Standing in front of <my-sunflower> plant"
    draw(graph, "Both in one picture", taught, (x + COLUMN_STEP, 60), prompt, 512, cfg=7.0)
    graph.note(
        "**Two concepts in one picture (Stable Diffusion 1.5).**\n\n"
        "1. Two sequences that know nothing of each other.\n"
        "2. Merge Concept Sequence adds them up into one LoRA file.\n"
        "3. Its CLIP understands the tokens of both.\n\n"
        "For concepts of one sequence no merge is needed: its newest model knows all of them.",
    )
    graph.save("multi_concept_sd15")


def which_forgets_least(graph: Graph) -> None:
    """Three recipes on the same three concepts of the embedded base, each evaluated."""
    base, models = tiny_base(graph)
    advanced = options(graph, TINY_OPTIONS)
    graph.group("The base and its settings", [base, advanced])
    concepts = {"fox": "animal", "sunflower": "plant", "guitar": "instrument"}
    loaders = [images_of(graph, *item, COLUMN + i * COLUMN_STEP) for i, item in enumerate(concepts.items())]
    graph.group("The same three concepts for every recipe", loaders, "#88a")
    for row, recipe in enumerate(("lora", "lora_ewc_dc", "lora_dsc_ewc")):
        first, x, y, last = len(graph.nodes), COLUMN, TRAIN_Y + 40 + row * ROW_STEP, None
        for loader in loaders:
            settings = {**TINY, "recipe": recipe, "sequence_name": f"forgetting {recipe}", "options": (advanced, 0)}
            before = (last, 0) if last else None
            last = train(graph, models, loader, (x, y), sequence=before, **settings)
            x += COLUMN_STEP
        links = {"model": models[0], "clip": models[1], "vae": models[2], "sequence": (last, 0)}
        how = {"cfg": 2.0, "spectrum_draws": 0}
        judged = graph.add(f"{PREFIX}EvaluateSequence", (x, y), (360, 380), **links, **how)
        shown = {"images": (judged, 0)}
        graph.add("PreviewImage", (x + 400, y), (480, 600), title="Contact sheet", **shown)
        graph.add("PreviewImage", (x + 920, y), (480, 380), title="Heat map", images=(judged, 1))
        graph.add("PreviewAny", (x + 920, y + 430), (480, 250), title="Table", source=(judged, 3))
        graph.group(f"Recipe {recipe}", graph.nodes[first:], "#8a8")
    graph.note(
        "**Which method forgets least? No download, no GPU needed, about ten minutes.**\n\n"
        "1. Three recipes are taught the same three concepts, each in a sequence of its own.\n"
        "2. Evaluate Concept Sequence draws every concept after every task, and compares by EfficientNet: if that is "
        "not installed, ComfyUI says at once how to.\n"
        "3. Contact sheet: does the fox in the last row still look like the fox above it?\n\n"
        "Heat map and table say the same in numbers: where a column grows to the bottom, its concept is forgotten.",
        size=(860, 190),
    )
    graph.save("which_method_forgets_least_cpu")


def classify(graph: Graph) -> None:
    """One drawn batch against a few prompts; nothing is trained."""
    base, models = tiny_base(graph)
    graph.group("The base", [base])
    cats = draw(graph, "Something to ask about", models, (COLUMN, 60), "photo of a cat", 64, cfg=3.0)
    x = COLUMN + DRAW_WIDTH
    prompts = "\n".join(f"photo of a {noun}" for noun in ("cat", "dog", "tulip", "car"))
    links = {"model": models[0], "clip": models[1], "vae": models[2], "images": (cats, 0)}
    score = graph.add(f"{PREFIX}ClassifierScore", (x, 60), (380, 400), prompts=prompts, trials=64, **links)
    graph.group("Ask the model", [score], "#a88")
    x += COLUMN_STEP + 20
    answers = [
        graph.add("PreviewAny", (x, 60), (340, 160), title="The best prompt of each image", source=(score, 0)),
        graph.add("PreviewAny", (x, 280), (340, 320), title="The scores", source=(score, 1)),
        graph.add("PreviewImage", (x + 380, 60), (440, 540), title="The scores as bars", images=(score, 2)),
    ]
    graph.group("What it says", answers, "#8a8")
    graph.note(
        "**Classify with a diffusion model: no download, no GPU needed, nothing is trained.**\n\n"
        "1. Draws four cats with the small bundled model; connect Load Image for pictures of your own.\n"
        "2. Adds noise to each, lets the model remove it under every prompt, and compares the errors.\n"
        "3. The prompt with the smallest error is the answer; the scores of all prompts sum to 1.\n\n"
        "With a sequence connected, its concepts are candidates as well.",
        size=(860, 190),
    )
    graph.save("classify_with_dc_scores_cpu")


WORKFLOWS = (quickstart, sequential_sd15, sequential_sdxl, multi_concept, which_forgets_least, classify)


def main() -> None:
    """Write every workflow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("object_info", type=Path)
    info = json.loads(parser.parse_args().object_info.read_text(encoding="utf-8"))
    FOLDER.mkdir(exist_ok=True)
    for write in WORKFLOWS:
        write(Graph(info))


if __name__ == "__main__":
    main()
