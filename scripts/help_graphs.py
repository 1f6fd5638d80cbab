"""The small graphs that the help pages show: each node among its neighbors, on what the quickstart left behind."""

from collections.abc import Callable
from typing import Any

from .graph import PREFIX, Graph, Node
from .workflows import TINY, TINY_OPTIONS

Outputs = list[tuple[Node, int]]
SEQUENCE = "quickstart"  # of two concepts, a fox and a sunflower
LEFT, MIDDLE, RIGHT = 0, 400, 840


def _base(graph: Graph, y: int = 0) -> Outputs:
    base = graph.add(f"{PREFIX}LoadTinyBase", (LEFT, y), (320, 90))
    return [(base, 0), (base, 1), (base, 2)]


def _sequence(graph: Graph, y: int = 150) -> tuple[Node, int]:
    return graph.add(f"{PREFIX}LoadSequence", (LEFT, y), (320, 100), sequence_name=SEQUENCE), 0


def load_tiny_base(info: dict[str, Any]) -> Graph:
    """The base draws."""
    graph = Graph(info)
    model, clip, vae = _base(graph)
    wanted = graph.add("CLIPTextEncode", (LEFT, 150), (320, 100), text="noto tulip", clip=clip)
    latent = graph.add("EmptyLatentImage", (LEFT, 310), (320, 110), width=64, height=64, batch_size=1)
    links = {"positive": (wanted, 0), "negative": (wanted, 0), "latent_image": (latent, 0), "model": model}
    sampler = {"steps": 25, "cfg": 3.0, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0}
    samples = graph.add("KSampler", (MIDDLE, 0), (300, 270), seed=1, **links, **sampler)
    images = graph.add("VAEDecode", (MIDDLE, 340), (300, 60), samples=(samples, 0), vae=vae)
    graph.add("PreviewImage", (740, 0), (320, 420), images=(images, 0))
    return graph


def load_concept_images(info: dict[str, Any]) -> Graph:
    """A bundled concept, with its preview."""
    graph = Graph(info)
    words = {"folder": "bundled: fox", "token": "my-fox", "class_noun": "animal"}
    graph.add(f"{PREFIX}LoadConceptImages", (LEFT, 0), (380, 460), **words)
    return graph


def train(info: dict[str, Any]) -> Graph:
    """The first concept of the quickstart."""
    graph = Graph(info)
    model, clip, vae = _base(graph)
    words = {"folder": "bundled: fox", "token": "my-fox", "class_noun": "animal"}
    concept = graph.add(f"{PREFIX}LoadConceptImages", (LEFT, 150), (320, 400), **words)
    advanced = graph.add(f"{PREFIX}TrainOptions", (LEFT, 610), (320, 100), **TINY_OPTIONS)
    advanced["flags"]["collapsed"] = True
    links = {"model": model, "clip": clip, "vae": vae, "concept": (concept, 0), "options": (advanced, 0)}
    graph.add(f"{PREFIX}Train", (MIDDLE, 0), (380, 380), sequence_name=SEQUENCE, **links, **TINY)
    return graph


def train_options(info: dict[str, Any]) -> Graph:
    """The options alone, at their defaults."""
    graph = Graph(info)
    graph.add(f"{PREFIX}TrainOptions", (LEFT, 0), (420, 520))
    return graph


def classifier_score(info: dict[str, Any]) -> Graph:
    """A cat of the base against four prompts."""
    graph = load_tiny_base(info)
    base, wanted, _, _, images, _ = graph.nodes
    wanted["widgets_values"] = ["photo of a cat"]
    prompts = "\n".join(f"photo of a {noun}" for noun in ("cat", "dog", "tulip", "car"))
    links = {"model": (base, 0), "clip": (base, 1), "vae": (base, 2), "images": (images, 0)}
    score = graph.add(f"{PREFIX}ClassifierScore", (MIDDLE, 480), (300, 400), prompts=prompts, **links)
    graph.add("PreviewImage", (740, 480), (480, 400), images=(score, 2))
    return graph


def apply_sequence(info: dict[str, Any]) -> Graph:
    """The quickstart's fox, as it was right after its task."""
    graph = Graph(info)
    model, clip, _ = _base(graph)
    links = {"model": model, "clip": clip, "sequence": _sequence(graph)}
    applied = graph.add(f"{PREFIX}ApplySequence", (MIDDLE, 0), (360, 150), up_to_task=1, **links)
    graph.add("CLIPTextEncode", (800, 0), (320, 100), text="photo of a <my-fox> animal", clip=(applied, 1))
    return graph


def evaluate_sequence(info: dict[str, Any]) -> Graph:
    """The quickstart's two concepts."""
    graph = Graph(info)
    model, clip, vae = _base(graph)
    links = {"model": model, "clip": clip, "vae": vae, "sequence": _sequence(graph)}
    how = {"images": 4, "cfg": 2.0, "dc_trials": 0, "spectrum_draws": 0}
    judged = graph.add(f"{PREFIX}EvaluateSequence", (MIDDLE, 0), (400, 380), **links, **how)
    graph.add("PreviewImage", (RIGHT, 0), (440, 480), title="Contact sheet", images=(judged, 0))
    return graph


def merge_sequence(info: dict[str, Any]) -> Graph:
    """Both tasks of one sequence, in equal shares."""
    graph = Graph(info)
    model, clip, _ = _base(graph)
    links = {"model": model, "clip": clip, "sequence": _sequence(graph)}
    how = {"tasks": "1, 2", "method": "linear", "filename": "fox_and_sunflower"}
    graph.add(f"{PREFIX}MergeSequence", (MIDDLE, 0), (380, 320), **links, **how)
    return graph


def load_sequence(info: dict[str, Any]) -> Graph:
    """A sequence, and where it goes."""
    graph = Graph(info)
    sequence = graph.add(f"{PREFIX}LoadSequence", (LEFT, 0), (360, 100), sequence_name=SEQUENCE)
    graph.add(f"{PREFIX}ApplySequence", (MIDDLE + 20, 0), (360, 150), sequence=(sequence, 0))
    return graph


def save_sequence(info: dict[str, Any]) -> Graph:
    """Where the files are, and how prompts name the words."""
    graph = Graph(info)
    links = {"sequence": _sequence(graph, 0), "filename": "fox_and_sunflower"}
    saved = graph.add(f"{PREFIX}SaveSequence", (MIDDLE, 0), (360, 120), **links)
    graph.add("PreviewAny", (800, 0), (340, 120), source=(saved, 1))
    return graph


HELP_GRAPHS: dict[str, Callable[[dict[str, Any]], Graph]] = {
    "LoadTinyBase": load_tiny_base,
    "LoadConceptImages": load_concept_images,
    "Train": train,
    "TrainOptions": train_options,
    "ClassifierScore": classifier_score,
    "ApplySequence": apply_sequence,
    "EvaluateSequence": evaluate_sequence,
    "MergeSequence": merge_sequence,
    "LoadSequence": load_sequence,
    "SaveSequence": save_sequence,
}
