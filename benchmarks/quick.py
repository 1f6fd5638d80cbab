"""Forgetting on the embedded base: six held-out concepts in sequence, every recipe, three seeds.

`python -m benchmarks.quick` runs what benchmarks/results/quick.csv lacks and prints the table. With `--tuning` the same
runs on six other concepts into tuning.csv; settings are chosen there and never on the reported sequence.
MMD is the unsquared one of trainer/metrics, on features of EfficientNet-Lite0. Every concept is drawn right after its
task and after the last one, from the same noise; a sheet of both is left in build/benchmark.
"""

import argparse
import csv
import json
import resource
import shutil
import statistics
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from trainer.apply import apply_sequence
from trainer.bases.tiny.base import TinyBase
from trainer.bases.tiny.weights import fingerprint, weights_folder
from trainer.cli.demo import SAMPLES, TINY_SETTINGS, load_sample, square
from trainer.concept import Concept, prepare
from trainer.metrics import a_mmd, bwt_mmd, f_mmd, image_similarity, new_mmd
from trainer.metrics.features.efficientnet import EfficientNetLite0
from trainer.plots import image_grid
from trainer.sampling import generate
from trainer.sequence import ConceptSequence
from trainer.settings import TrainSettings
from trainer.teach import teach

RESULTS = Path(__file__).with_name("results")
TUNING = Path(__file__).with_name("tuning_concepts")
RECIPES = ("lora", "lora_ewc", "lora_ewc_dc")
SEEDS = (0, 1, 2)
# Of those tried on the tuning sequence (results/tuning.csv), the one with the lowest A_MMD among those at which new
# concepts are learned as well as by `lora`.
PENALTY_WEIGHT = 10.0
IMAGES, SAMPLING_STEPS, IMAGE_SEED = 16, 20, 1000
METRICS = ("a_mmd", "f_mmd", "bwt_mmd", "i2i", "new_mmd")
COLUMNS = ("recipe", "adapter", "seed", "encoder", *METRICS, "seconds_per_task", "peak_mb", "state_bytes")
SETTING_COLUMNS = ("penalty_weight", "steps", "learning_rate", "token_learning_rate", "schedule", "temperature", "base")


def concepts_of(folder: Path) -> list[Concept]:
    """The six concepts of a folder, in the order of its list."""
    return [load_sample(name, folder) for name in json.loads((folder / "samples.json").read_text(encoding="utf-8"))]


def drawn(line: ConceptSequence, concept: Concept) -> Tensor:
    """Images of a concept by the model at the end of the line, [IMAGES, 3, 64, 64]."""
    base = TinyBase()
    tokens = apply_sequence(base, line)
    with torch.no_grad():
        prompt, empty = base.encode_prompt(concept.prompt, tokens), base.encode_prompt("", {})
        return generate(base, prompt, empty, IMAGES, IMAGE_SEED, SAMPLING_STEPS)


def run(settings: TrainSettings, folder: Path, work: Path) -> dict[str, object]:
    """One sequence: teach, draw, measure. A folder left over by a killed run is gone on with."""
    torch.set_num_threads(1)
    encoder, concepts = EfficientNetLite0(), concepts_of(folder)
    line = ConceptSequence.create(work, TinyBase().fingerprint)
    seconds, own_turn = 0.0, []
    for concept in concepts:
        start = time.perf_counter()
        line = teach(TinyBase(), concept, settings, line)
        seconds += time.perf_counter() - start
        own_turn.append(drawn(line, concept))
    images = [prepare(concept, TinyBase.resolution)[0] for concept in concepts]
    at_the_end = [drawn(line, concept) for concept in concepts]
    pictures = {"real": images, "right after its task": own_turn, "after the last task": at_the_end}
    grid = [[square(images) for images in row] for row in pictures.values()]
    image_grid(grid, list(pictures), [concept.name for concept in concepts]).save(work.with_suffix(".png"))
    real = [encoder(x) for x in images]
    # Only the own turn and the last row enter these metrics; what lies between is not drawn.
    learned = [encoder(x) for x in own_turn]
    generated = [learned[: i + 1] for i in range(len(concepts) - 1)]
    generated.append([encoder(x) for x in at_the_end])
    newest = line.folder(line.tasks[-1])
    state = [p for p in newest.iterdir() if p.suffix == ".safetensors"]
    similarity = [image_similarity(r, g) for r, g in zip(real, generated[-1], strict=True)]
    return {
        "recipe": settings.recipe,
        "adapter": "lora",
        "seed": settings.seed,
        "encoder": encoder.name,
        "a_mmd": float(a_mmd(real, generated, squared=False)),
        "f_mmd": float(f_mmd(real, generated, squared=False)),
        "bwt_mmd": float(bwt_mmd(real, generated, squared=False)),
        "i2i": float(torch.stack(similarity).mean()),
        "new_mmd": float(new_mmd(real, generated, squared=False)),
        "seconds_per_task": seconds / len(concepts),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "state_bytes": sum(p.stat().st_size for p in state),
        **{name: getattr(settings, name) for name in SETTING_COLUMNS if hasattr(settings, name)},
        "base": fingerprint(weights_folder())[:12],
    }


def run_job(call: tuple[TrainSettings, Path, Path]) -> tuple[dict[str, object], Path]:
    """One run in a process of its own, so that its peak memory is its own."""
    return run(*call), call[2]


def key(row: dict[str, object]) -> tuple[str, ...]:
    """What makes a row the same run as another."""
    return tuple(str(row[name]) for name in ("recipe", "seed", *SETTING_COLUMNS))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The finished runs."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: Path, row: dict[str, object]) -> None:
    """Add a finished run at once."""
    new = not path.exists()
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *SETTING_COLUMNS])
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) and k in COLUMNS else v for k, v in row.items()})


def print_table(rows: list[dict[str, str]]) -> None:
    """Mean and standard deviation over the seeds, one line for each recipe and penalty weight."""
    groups: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows:
        rates = f"{row['learning_rate']}, {row['token_learning_rate']}"
        groups.setdefault((row["recipe"], row["penalty_weight"], rates), []).append(row)
    print(f"| recipe | lambda | learning rates | seeds | {' | '.join(METRICS)} | s/task | MB |")
    print("|---" * (len(METRICS) + 6) + "|")
    for (recipe, weight, rate), group in groups.items():
        cells = []
        for name in (*METRICS, "seconds_per_task", "peak_mb"):
            values = [float(row[name]) for row in group]
            spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 and name in METRICS else ""
            cells.append(f"{statistics.mean(values):.4g}{spread}")
        print(f"| {recipe} | {weight} | {rate} | {len(group)} | {' | '.join(cells)} |")


def main() -> None:
    """Run what is missing, two runs at a time with one thread each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tuning", action="store_true", help="on the separate sequence")
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--penalty-weights", nargs="*", type=float, default=[PENALTY_WEIGHT])
    parser.add_argument("--steps", type=int, default=TINY_SETTINGS.steps)
    parser.add_argument("--learning-rate", type=float, default=TINY_SETTINGS.learning_rate)
    parser.add_argument("--token-learning-rate", type=float, default=TINY_SETTINGS.token_learning_rate)
    parser.add_argument("--schedule", default=TINY_SETTINGS.schedule)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    path = RESULTS / ("tuning.csv" if args.tuning else "quick.csv")
    folder = TUNING if args.tuning else SAMPLES
    done = {key(row) for row in read_rows(path)}
    base, jobs = fingerprint(weights_folder())[:12], []
    for seed in args.seeds:
        for recipe in args.recipes:
            for weight in args.penalty_weights if recipe != "lora" else [0.0]:
                settings = replace(
                    TINY_SETTINGS,
                    recipe=recipe,
                    seed=seed,
                    penalty_weight=weight,
                    steps=args.steps,
                    learning_rate=args.learning_rate,
                    token_learning_rate=args.token_learning_rate,
                    schedule=args.schedule,
                )
                named = {name: getattr(settings, name, base) for name in ("recipe", "seed", *SETTING_COLUMNS)}
                if key(named) not in done:
                    jobs.append((settings, "-".join(key(named)).replace(".", "_")))
    work = Path("build/benchmark") / path.stem
    with get_context("spawn").Pool(args.workers, maxtasksperchild=1) as pool:
        calls = [(settings, folder, work / name) for settings, name in jobs]
        for row, left_over in tqdm(pool.imap_unordered(run_job, calls), total=len(calls), desc=path.stem):
            append_row(path, row)
            shutil.rmtree(left_over)
    print_table(read_rows(path))


if __name__ == "__main__":
    main()
