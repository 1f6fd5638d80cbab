"""Write the bundled workflows in the format that ComfyUI's page saves: `python -m scripts.workflows OBJECT_INFO.json`.

The argument is what a running server answers at /object_info; sockets and widgets come from there.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.cli.demo import TINY_SETTINGS

FOLDER = Path(__file__).parents[1] / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PREFIX = "ContinualLoRA_"
CHECKPOINT = "v1-5-pruned-emaonly.safetensors"


COLUMN, COLUMN_STEP = 360, 400  # where the first training stands, and how far the next


def sample(name: str, noun: str) -> dict[str, Any]:
    """Widgets of Load Concept Images for a bundled sample."""
    return {"folder": f"bundled: {name}", "token": f"my-{name}", "class_noun": noun}


@dataclass
class Graph:
    """A workflow in the making.

    Args:
        info: of every node class, from the server.
    """

    info: dict[str, Any]
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)

    def add(
        self, kind: str, pos: tuple[int, int], size: tuple[int, int] = (320, 120), title: str = "", **values: Any
    ) -> dict[str, Any]:
        """A node; a value that is (node, output index) becomes a link, any other one a widget's value."""
        schema = self.info[kind]
        names = [*schema["input_order"].get("required", []), *schema["input_order"].get("optional", [])]
        specs = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
        unknown = set(values) - set(names)
        assert not unknown, f"{kind} has no input {unknown}"
        node: dict[str, Any] = {
            "id": len(self.nodes) + 1,
            "type": kind,
            "pos": list(pos),
            "size": list(size),
            "flags": {},
            "order": len(self.nodes),
            "mode": 0,
            "inputs": [],
            "outputs": [
                {"name": name, "type": kind_of, "links": []}
                for name, kind_of in zip(schema["output_name"], schema["output"], strict=True)
            ],
            "properties": {"Node name for S&R": kind},
            "widgets_values": [],
        }
        if title:
            node["title"] = title
        self.nodes.append(node)
        for name in names:
            kind_of, options = specs[name][0], (specs[name][1] if len(specs[name]) > 1 else {})
            if isinstance(kind_of, list) or kind_of in WIDGET_TYPES:
                self._widget(node, name, kind_of, options, values)
            else:
                self._socket(node, name, kind_of, values.get(name))
        return node

    def _widget(
        self, node: dict[str, Any], name: str, kind: Any, options: dict[str, Any], values: dict[str, Any]
    ) -> None:
        if name not in values and "default" not in options:
            values = {name: kind[0] if isinstance(kind, list) else options["options"][0]}
        node["widgets_values"].append(values.get(name, options.get("default")))
        if options.get("control_after_generate", name in ("seed", "noise_seed")):  # as the page does
            node["widgets_values"].append("fixed")

    def _socket(self, node: dict[str, Any], name: str, kind: str, source: Any) -> None:
        socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
        if source is not None:
            origin, index = source
            socket["link"] = len(self.links) + 1
            origin["outputs"][index]["links"].append(socket["link"])
            self.links.append([socket["link"], origin["id"], index, node["id"], len(node["inputs"]), kind])
        node["inputs"].append(socket)

    def note(self, text: str, pos: tuple[int, int], size: tuple[int, int] = (420, 150)) -> None:
        """A note that explains the graph."""
        self.nodes.append(
            {
                "id": len(self.nodes) + 1,
                "type": "MarkdownNote",
                "pos": list(pos),
                "size": list(size),
                "flags": {},
                "order": len(self.nodes),
                "mode": 0,
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [text],
                "color": "#432",
                "bgcolor": "#653",
            }
        )

    def save(self, name: str) -> None:
        """Write workflows/<name>.json."""
        content = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def teach(
        self, models: list[Any], x: int, concept: dict[str, Any], settings: dict[str, Any], sequence: Any, options: Any
    ) -> dict[str, Any]:
        """Load Concept Images and Train Continual LoRA, one above the other."""
        loader = self.add(f"{PREFIX}LoadConceptImages", (x, 60), (360, 400), **concept)
        model, clip, vae = models
        links = {"model": model, "clip": clip, "vae": vae, "concept": (loader, 0), "sequence": sequence}
        if options is not None:
            links["options"] = options
        return self.add(f"{PREFIX}Train", (x, 520), (360, 380), **links, **settings)

    def teach_in_turn(
        self, models: list[Any], concepts: dict[str, str], settings: dict[str, Any], options: Any = None
    ) -> tuple[dict[str, Any], int]:
        """One training after another on bundled samples, name -> class noun; the last one, and where space begins."""
        train, x = None, COLUMN
        for name, noun in concepts.items():
            train = self.teach(models, x, sample(name, noun), settings, (train, 0) if train else None, options)
            x += COLUMN_STEP
        assert train is not None
        return train, x

    def draw(self, models: list[Any], x: int, y: int, prompt: str, size: int, seed: int = 1, **sampler: Any) -> Any:
        """Prompt to saved image; returns the node with the images."""
        model, clip, vae = models
        wanted = self.add("CLIPTextEncode", (x, y), (300, 100), text=prompt, clip=clip)
        empty = self.add("CLIPTextEncode", (x, y + 150), (300, 80), title="Empty prompt", text="", clip=clip)
        latent = self.add("EmptyLatentImage", (x, y + 280), (300, 110), width=size, height=size, batch_size=4)
        chosen = {"steps": 25, "cfg": 2.0, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0, **sampler}
        links = {"positive": (wanted, 0), "negative": (empty, 0), "latent_image": (latent, 0)}
        samples = self.add("KSampler", (x + 330, y), (300, 270), model=model, seed=seed, **links, **chosen)
        images = self.add("VAEDecode", (x + 330, y + 320), (300, 60), samples=(samples, 0), vae=vae)
        self.add("SaveImage", (x + 660, y), (320, 340), images=(images, 0), filename_prefix="continual_lora/image")
        return images


BASIC = ("recipe", "steps", "rank", "learning_rate", "penalty_weight")
ADVANCED = ("batch_size", "token_learning_rate", "schedule", "low_memory")
TINY = {name: getattr(TINY_SETTINGS, name) for name in BASIC}


def quickstart(info: dict[str, Any]) -> None:
    """Two bundled concepts on the embedded base, both drawn, and scored."""
    graph = Graph(info)
    base = graph.add(f"{PREFIX}LoadTinyBase", (0, 60), (260, 90))
    models = [(base, 0), (base, 1), (base, 2)]
    advanced = {name: getattr(TINY_SETTINGS, name) for name in ADVANCED}
    options = graph.add(f"{PREFIX}TrainOptions", (0, 260), (320, 520), **advanced)
    concepts = {"fox": "animal", "sunflower": "plant"}
    train, x = graph.teach_in_turn(models, concepts, {"sequence_name": "quickstart", **TINY}, (options, 0))
    taught = [(train, 1), (train, 2), (base, 2)]
    fox = graph.draw(taught, x, 60, "photo of a <my-fox> animal", 64)
    graph.draw(taught, x, 520, "photo of a <my-sunflower> plant", 64)
    scores = {"model": models[0], "clip": models[1], "vae": models[2], "images": (fox, 0), "sequence": (train, 0)}
    score = graph.add(f"{PREFIX}ClassifierScore", (x + 1020, 60), (340, 300), prompts="photo of a person", **scores)
    graph.add("PreviewImage", (x + 1020, 480), (340, 400), images=(score, 2))
    graph.note(
        "**Quickstart, no download, no GPU needed.**\n\n1. Teaches the small bundled model a fox, then a sunflower.\n"
        "2. Draws both with the model after the second: the fox is still there.\n"
        "3. Asks the model which concept its own fox images show.\n\nRunning it again trains nothing anew.",
        (0, -170),
        (620, 190),
    )
    graph.save("quickstart_cpu")


def sequential(info: dict[str, Any]) -> None:
    """Three concepts on an SD 1.5 checkpoint."""
    graph = Graph(info)
    base = graph.add("CheckpointLoaderSimple", (0, 60), (320, 110), ckpt_name=CHECKPOINT)
    models = [(base, 0), (base, 1), (base, 2)]
    concepts = {"fox": "animal", "guitar": "instrument", "hamburger": "food"}
    train, x = graph.teach_in_turn(models, concepts, {"sequence_name": "three concepts"})
    taught = [(train, 1), (train, 2), (base, 2)]
    graph.draw(taught, x, 60, "photo of a <my-fox> animal", 512, cfg=7.0)
    graph.draw(taught, x, 520, "photo of a <my-hamburger> food", 512, cfg=7.0)
    graph.add(f"{PREFIX}SaveSequence", (x, 980), (340, 120), sequence=(train, 0), filename="three_concepts")
    graph.note(
        "**Three concepts, one LoRA (Stable Diffusion 1.5).**\n\n1. Choose your checkpoint, and a folder of your own "
        "images in each Load Concept Images.\n2. Each training goes on from the one before it.\n"
        "3. Save Concept Sequence writes the LoRA and the tokens for other tools.\n\nStop whenever you like: queueing "
        "again goes on where it stopped.",
        (0, -170),
        (620, 190),
    )
    graph.save("sequential_concepts_sd15")


def multi_concept(info: dict[str, Any]) -> None:
    """Two sequences, merged, in one picture."""
    graph = Graph(info)
    base = graph.add("CheckpointLoaderSimple", (0, 60), (320, 110), ckpt_name=CHECKPOINT)
    models = [(base, 0), (base, 1), (base, 2)]
    trains, x = [], COLUMN
    for name, noun in (("penguin", "bird"), ("sunflower", "plant")):
        trains.append(graph.teach(models, x, sample(name, noun), {"sequence_name": f"only {name}"}, None, None))
        x += COLUMN_STEP
    merged = graph.add(
        f"{PREFIX}MergeSequence",
        (x, 60),
        (360, 420),
        model=models[0],
        clip=models[1],
        sequence=(trains[0], 0),
        sequence_2=(trains[1], 0),
        filename="penguin_and_sunflower",
    )
    taught = [(merged, 1), (merged, 2), (base, 2)]
    prompt = "A photo of <my-penguin> bird. Standing in front of <my-sunflower> plant"
    graph.draw(taught, x + 400, 60, prompt, 512, cfg=7.0)
    graph.note(
        "**Two concepts in one picture (Stable Diffusion 1.5).**\n\n1. Two sequences that know nothing of each other.\n"
        "2. Merge Concept Sequence adds them up into one LoRA file.\n3. Its CLIP understands the tokens of both.\n\n"
        "For concepts of one sequence no merge is needed: its newest model knows all of them.",
        (0, -170),
        (620, 190),
    )
    graph.save("multi_concept_sd15")


def main() -> None:
    """Write every workflow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("object_info", type=Path)
    info = json.loads(parser.parse_args().object_info.read_text(encoding="utf-8"))
    FOLDER.mkdir(exist_ok=True)
    for write in (quickstart, sequential, multi_concept):
        write(info)


if __name__ == "__main__":
    main()
