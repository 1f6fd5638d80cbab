"""train, generate, score, evaluate, merge, convert."""

import argparse
import sys
from pathlib import Path

import torch

from ..adapters.layouts import LAYOUTS, METADATA_KEY, load_lora, peft_config, write_lora
from ..apply import apply_sequence
from ..classifier import candidate_prompts, classify
from ..concept import TEMPLATE, load_concept, prepare
from ..denoiser import Denoiser, TokenVectors, encode_one_by_one
from ..disk.files import read_tensors, storing, write_json, write_tensors
from ..disk.sequence import ConceptSequence
from ..evaluation.evaluate import evaluate
from ..evaluation.report import markdown_table, write_evaluation
from ..images import to_pil
from ..merging import MERGE_METHODS
from ..merging.lines import merge_sequences
from ..metrics.features import FeatureEncoder
from ..metrics.features.efficientnet import EfficientNetLite0
from ..metrics.features.open_clip import OpenClip
from ..processes import launched_work
from ..sampling import generate
from ..teach import teach
from .arguments import (
    Bar,
    add_base_arguments,
    add_measuring_arguments,
    add_settings_arguments,
    chosen_base,
    drawing_of,
    settings_of,
)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Teach one concept."""
    parser.add_argument("images", type=Path, help="folder with the concept's images (captions in .txt beside them)")
    parser.add_argument("--sequence", type=Path, required=True, help="folder of the sequence; made if it is not there")
    parser.add_argument("--token", required=True, help="the new word, written <word> in prompts")
    parser.add_argument("--class-noun", required=True, help="what kind of thing it is, such as dog")
    parser.add_argument("--prompt", default=TEMPLATE, help="what it is trained under (default: %(default)s)")
    parser.add_argument(
        "--alpha-channel", choices=("composite", "mask"), default="composite", help="transparent places"
    )
    parser.add_argument(
        "--existing-lora", type=Path, help="a LoRA of this base's cross-attention that a new sequence starts from"
    )
    add_settings_arguments(parser)
    add_base_arguments(parser)


def run_train(arguments: argparse.Namespace) -> None:
    """Train, or find the finished task."""
    work = launched_work()  # before the base is opened, on this process's own GPU
    settings = settings_of(arguments)
    concept = load_concept(
        arguments.images,
        token=arguments.token,
        class_noun=arguments.class_noun,
        template=arguments.prompt,
        alpha=arguments.alpha_channel,
    )
    denoiser = chosen_base(arguments).open()
    root: Path = arguments.sequence
    known = (root / "manifest.json").exists()
    before = ConceptSequence.open(root) if known else ConceptSequence.create(root, denoiser.fingerprint)
    for task in before.tasks:  # the same command again finds its task, or with other settings makes a branch beside it
        if task.token == concept.token:
            before = before.up_to(task.index - 1)
            break
    start = load_lora(arguments.existing_lora, denoiser.unet) if arguments.existing_lora else None
    with Bar(f"{concept.token} ", shown=work.first) as bar:
        after = teach(denoiser, concept, settings, before, bar, start, work=work)
    newest = after.tasks[-1]
    if work.first:
        print(f"Concept {newest.index}, <{newest.token}>, is in {after.folder(newest)}")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Make images with a sequence."""
    parser.add_argument("prompt", help="what to draw; <token> stands for a taught concept")
    parser.add_argument("--sequence", type=Path, help="folder of the sequence; without it the base alone")
    parser.add_argument("--task", type=int, default=0, help="the model as it was after this task (default: the newest)")
    parser.add_argument("--count", type=int, default=4, help="images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="sampling steps (default: %(default)s)")
    parser.add_argument("--size", type=int, default=0, help="side in pixels (default: the base's own)")
    parser.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("images"), help="folder for the images (default: %(default)s)")
    add_base_arguments(parser)


def run_generate(arguments: argparse.Namespace) -> None:
    """Sample and write PNGs; an existing file is never overwritten."""
    denoiser = chosen_base(arguments).open()
    tokens = _opened(denoiser, arguments.sequence, arguments.task)
    with torch.no_grad():
        prompt, empty = denoiser.encode_prompt(arguments.prompt, tokens), denoiser.encode_prompt("", {})
        images = generate(
            denoiser,
            prompt,
            empty,
            arguments.count,
            arguments.seed,
            arguments.steps,
            arguments.guidance,
            arguments.size,
        )
    with storing(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
    number = 0
    for image in images:
        while (path := arguments.out / f"{number:05d}.png").exists():
            number += 1
        with storing(path):
            to_pil(image).save(path)
        print(path)


def add_score(parser: argparse.ArgumentParser) -> None:
    """Classify images by the denoising error."""
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--sequence", type=Path, help="its concepts are candidates")
    parser.add_argument("--prompts", nargs="*", default=[], help="further candidates")
    parser.add_argument("--trials", type=int, default=16, help="(time, noise) draws (default: %(default)s)")
    parser.add_argument(
        "--pruning", action=argparse.BooleanOptionalAction, default=True, help="drop the unlikely early"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    add_base_arguments(parser)


def run_score(arguments: argparse.Namespace) -> None:
    """Print the best prompt and the probabilities of every image."""
    # Any token will do: only the images are wanted.
    squares_of = load_concept(arguments.images, token="image", class_noun="image")
    work = launched_work()
    denoiser = work.shared(chosen_base(arguments).open())
    tokens = _opened(denoiser, arguments.sequence, 0)
    taught = [task.prompt for task in ConceptSequence.open(arguments.sequence).tasks] if arguments.sequence else []
    candidates = candidate_prompts(taught, arguments.prompts)
    squares, _ = prepare(squares_of, denoiser.resolution)
    with torch.no_grad(), Bar(shown=work.first) as bar:
        latents = encode_one_by_one(denoiser, squares)
        prompts = [denoiser.encode_prompt(text, tokens) for text in candidates]
        result = classify(
            denoiser,
            latents,
            prompts,
            arguments.trials,
            arguments.seed,
            pruned=arguments.pruning,
            on_pass=lambda done, total: bar.show("score", done, total),
        )
    for index, best in enumerate(result.predicted.tolist()):
        scores = ", ".join(
            f"{text}: {p:.3f}" for text, p in zip(candidates, result.scores[:, index].tolist(), strict=True)
        )
        if work.first:
            print(f"image {index + 1}: {candidates[best]}  ({scores})")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """What a sequence remembers."""
    parser.add_argument("sequence", type=Path, help="folder of the sequence")
    add_measuring_arguments(parser)
    parser.add_argument(
        "--spectrum-draws", type=int, default=64, help="samples of the Fisher, 0 leaves it out (default: 64)"
    )
    add_base_arguments(parser)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Draw, measure, write the report; what is on disk is not drawn again."""
    work = launched_work()  # before the base is opened, on this process's own GPU
    line = ConceptSequence.open(arguments.sequence)
    clip = arguments.open_clip
    encoder: FeatureEncoder = OpenClip(clip, arguments.architecture) if clip else EfficientNetLite0()
    open_view, artist = chosen_base(arguments).with_artist(drawing_of(arguments))
    line.check_base(open_view().fingerprint)
    with Bar(shown=work.first) as bar:
        trials, draws = arguments.dc_trials, arguments.spectrum_draws
        evaluation = evaluate(line, artist, encoder, open_view, trials, draws, bar.show, work)
    if not work.first:
        return
    folder = write_evaluation(evaluation)
    print(markdown_table(evaluation))
    print(f"Report: {(folder / 'report.html').resolve()}")


def add_merge(parser: argparse.ArgumentParser) -> None:
    """Merge sequences, or tasks of one, into a LoRA file."""
    parser.add_argument("sequences", type=Path, nargs="+", help="folders of sequences")
    parser.add_argument("--tasks", type=int, nargs="*", default=[], help="tasks of the first (default: its newest)")
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="*",
        default=[],
        help="one factor each (default: equal shares of tasks, 1 for each of several sequences)",
    )
    parser.add_argument("--method", choices=MERGE_METHODS, default="cat", help="(default: %(default)s)")
    parser.add_argument("--rank", type=int, default=0, help="of svd (default: the largest merged)")
    parser.add_argument("--density", type=float, default=0.5, help="kept by ties and dare (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what dare drops (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write; must not exist")


def run_merge(arguments: argparse.Namespace) -> None:
    """Merge and write."""
    if arguments.out.exists():
        sys.exit(f"{arguments.out} exists already; nothing is overwritten. Choose another name.")
    merged = merge_sequences(
        [ConceptSequence.open(path) for path in arguments.sequences],
        arguments.tasks,
        arguments.strengths,
        arguments.method,
        rank=arguments.rank,
        density=arguments.density,
        seed=arguments.seed,
    )
    write_tensors(arguments.out, merged.lora, merged.metadata)
    print(arguments.out)


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Write a LoRA in the key layout of another tool."""
    parser.add_argument("lora", type=Path, help="a LoRA file of any of the layouts")
    parser.add_argument("--to", choices=LAYOUTS, required=True, help="the layout")
    parser.add_argument(
        "--out", type=Path, required=True, help="the file to write; for peft a folder, with its adapter_config.json"
    )
    add_base_arguments(parser)


def run_convert(arguments: argparse.Namespace) -> None:
    """Read by any layout, write by one; an existing file is never overwritten."""
    out: Path = arguments.out
    if out.exists():
        sys.exit(f"{out} exists already; nothing is overwritten. Choose another name.")
    unet = chosen_base(arguments).open().unet
    lora = load_lora(arguments.lora, unet)
    tensors, layout_metadata = write_lora(lora, unet, arguments.to)
    metadata = {name: text for name, text in read_tensors(arguments.lora)[1].items() if name != METADATA_KEY}
    if arguments.to == "peft":
        write_json(out / "adapter_config.json", peft_config(lora))
        out = out / "adapter_model.safetensors"
    write_tensors(out, tensors, metadata | layout_metadata)
    print(out)


def _opened(denoiser: Denoiser, root: Path | None, task: int) -> dict[str, TokenVectors]:
    if root is None:
        return {}
    line = ConceptSequence.open(root)
    return apply_sequence(denoiser, line.up_to(task) if task else line)
