"""Merging what sequences have learned: which LoRAs, how strongly, and what the file says of itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.kohya import stems_from_kohya, stems_to_kohya
from ..denoiser import TokenVectors
from ..disk.metadata import tensor_hash
from ..disk.sequence import ConceptSequence
from ..errors import ContinualLoraError
from . import merge


@dataclass(frozen=True)
class MergedSequences:
    """A merged LoRA and all that its prompts need.

    Attributes:
        lora: in kohya's keys.
        metadata: for its file.
        tokens: every token of the merged sequences.
    """

    lora: dict[str, Tensor]
    metadata: dict[str, str]
    tokens: dict[str, TokenVectors]


def merge_sequences(
    sequences: list[ConceptSequence],
    tasks: list[int],
    strengths: list[float],
    method: str,
    *,
    rank: int,
    density: float,
    seed: int,
) -> MergedSequences:
    """Merge the LoRAs after chosen tasks of the first sequence with the newest ones of the others.

    Args:
        sequences: at least one; all of one base.
        tasks: of the first sequence, counted from 1; empty means its newest.
        strengths: one factor for each merged LoRA; empty means equal shares for tasks of one sequence, and 1 each for
            LoRAs of different sequences.
        method: one of `MERGE_METHODS`.
        rank: of `svd`.
        density: of `ties` and `dare`.
        seed: of `dare`.

    Raises:
        ContinualLoraError: different bases, one token for two concepts, or numbers that do not fit.
    """
    first, *others = sequences
    for other in others:
        other.check_base(first.base)
    if any(number < 1 for number in tasks):
        raise ContinualLoraError(
            '"tasks" should count the concepts of the first sequence from 1.',
            f"{min(tasks)} is among them.",
            f"Write numbers from 1 to {len(first.tasks)}, or leave it empty for the newest.",
        )
    if not 0 <= seed < 1 << 63:
        raise ContinualLoraError('"seed" should be from 0 to 2^63 - 1.', f"It is {seed}.", "Choose another.")
    lines = [*([first.up_to(number) for number in tasks] or [first]), *others]
    weights = strengths or [1.0 if others else 1 / len(lines)] * len(lines)
    if len(weights) != len(lines):
        raise ContinualLoraError(
            f'"strengths" should have one number for each of the {len(lines)} merged LoRAs.',
            f"It has {len(weights)}.",
            "Add or remove numbers, or leave it empty.",
        )
    tokens = _all_tokens(sequences)
    loras = [stems_from_kohya(line.lora(line.tasks[-1])) for line in lines]
    if not all(loras):
        raise ContinualLoraError(
            "Each merged task should have a LoRA.",
            "One has learned only its word, by textual_inversion.",
            "Use a sequence of one of the LoRA recipes.",
        )
    rng = torch.Generator().manual_seed(seed)
    lora = stems_to_kohya(merge(method, loras, weights, rank=rank, density=density, rng=rng))
    return MergedSequences(lora, _metadata(lines, lora, list(tokens), method), tokens)


def _all_tokens(sequences: list[ConceptSequence]) -> dict[str, TokenVectors]:
    tokens: dict[str, TokenVectors] = {}
    for sequence in sequences:
        for name, vectors in sequence.tokens().items():
            known = tokens.setdefault(name, vectors)
            if any(not torch.equal(known[key], vectors[key]) for key in vectors):
                raise ContinualLoraError(
                    "Sequences that are merged should have different tokens.",
                    f"`{name}` stands for different concepts in two of them.",
                    "Teach one of them again under another token.",
                )
    return tokens


def _metadata(
    lines: list[ConceptSequence], lora: Mapping[str, Tensor], tokens: list[str], method: str
) -> dict[str, str]:
    first = lines[0]
    kept = first.lora_metadata(first.tasks[-1])
    ranks = {len(value) for key, value in lora.items() if key.endswith("lora_down.weight")}
    names = [f"<{token}>" for token in tokens]
    return {
        **{key: value for key, value in kept.items() if key.startswith(("ss_base", "ss_res", "modelspec."))},
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(float(max(ranks))),
        "ss_training_comment": f"Continual LoRA, merged by {method}",
        "modelspec.title": f"{' '.join(names)} (Continual LoRA, merged)",
        "modelspec.trigger_phrase": ", ".join(names),
        "modelspec.merged_from": ", ".join(line.tasks[-1].key[:12] for line in lines),
        "modelspec.hash_sha256": "0x" + tensor_hash(lora),
        "continual_lora.tokens": json.dumps(names),
        "continual_lora.base": first.base,
    }
