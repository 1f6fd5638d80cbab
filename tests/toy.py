"""A base model of two 2x3 matrices: every prediction, error and gradient can be checked by hand.

    prediction = mean over the M words of K c_m * x_t + V c_m        x_t: [2 numbers], c_m: [3 numbers]

It has what the trainer asks of a base: the `Denoiser` protocol and `attn2.to_k` / `attn2.to_v` for an adapter.
"""

import hashlib
from types import MappingProxyType

import torch
from torch import nn

from trainer.adapters.lora import LoraAdapter
from trainer.bases.fingerprint import fingerprint
from trainer.bases.view import shared_view
from trainer.concept import concept_from_batch
from trainer.denoiser import Conditioning
from trainer.prompts import split_tokens, token_of
from trainer.settings import TrainSettings
from trainer.task import TrainedTask

ENCODER = "clip_l"
WIDTH, LENGTH = 3, 6
KEYS = [[0.5, -0.25, 0.0], [0.0, 0.5, 1.0]]
VALUES = [[1.0, 0.0, -0.5], [0.25, -1.0, 0.5]]


class _CrossAttention(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.to_k, self.to_v = nn.Linear(WIDTH, 2, bias=False), nn.Linear(WIDTH, 2, bias=False)
        self.to_k.weight.data = scale * torch.tensor(KEYS)
        self.to_v.weight.data = scale * torch.tensor(VALUES)


class _Block(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.attn2 = _CrossAttention(scale)


class ToyUNet(nn.Module):
    """Laid out as Stable Diffusion, so that the adapter's layers have kohya keys."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.input_blocks, self.output_blocks = nn.ModuleList(), nn.ModuleList()
        self.middle_block = nn.ModuleList([nn.Identity(), _Block(scale)])

    def forward(self, x, t, context):
        attention = self.middle_block[1].attn2
        k, v = attention.to_k(context), attention.to_v(context)  # [B, M, 2]
        return (k * x.flatten(1)[:, None] + v).mean(1).view_as(x)


class ToyBase:
    """See `Denoiser`; latents are [B, 1, 1, 2].

    Args:
        unet: the original, shared by every view of it.
        parameterization: "eps", "v" or "flow".
        on_predict: called with the number of each prediction, from 1; may raise.
    """

    architecture = "toy"
    resolution = 8
    device = torch.device("cpu")
    dtype = torch.float32
    mixed_precision = "no"
    changes = MappingProxyType({})

    def __init__(self, unet=None, parameterization="eps", on_predict=lambda count: None):
        self.original = unet or ToyUNet().requires_grad_(False)
        self.unet = shared_view(self.original)
        self.fingerprint = fingerprint(self.original)
        self.parameterization, self.on_predict = parameterization, on_predict
        self.passes, self.encoded = 0, []

    def make_room(self, shape, checkpointed):
        pass

    def encode_images(self, images):
        return images[:, :1].unflatten(-1, (2, -1)).mean((2, 4))[:, :, None] * 2 - 1

    def autoencoder_fingerprint(self):
        return "averages of red"

    def decode_latents(self, latents):
        side = self.resolution
        return (latents / 2 + 0.5).expand(-1, 3, side, -1).repeat_interleave(side // 2, -1).clamp(0, 1)

    def encode_prompt(self, prompt, tokens):
        self.encoded.append(prompt)
        rows = []
        for piece in split_tokens(prompt, tokens):
            name = token_of(piece, tokens)
            rows += [tokens[name][ENCODER]] if name else [_word(word) for word in piece.split()]
        rows += [torch.zeros(WIDTH)] * (LENGTH - len(rows))
        return Conditioning(torch.stack(rows[:LENGTH])[None])

    def word_vectors(self, word):
        return {ENCODER: torch.stack([_word(piece) for piece in word.split()]).mean(0)}

    def scales(self, t):
        signal = 1 - (t + 1) / 1001
        return (signal, 1 - signal) if self.parameterization == "flow" else (signal.sqrt(), (1 - signal).sqrt())

    def predict(self, x_t, t, conditioning):
        self.passes += 1
        self.on_predict(self.passes)
        return self.unet(x_t, t, conditioning.context)


def _word(word):
    """Three numbers in -1..1 that the word alone decides."""
    return torch.tensor(list(hashlib.sha256(word.encode()).digest()[:WIDTH])) / 127.5 - 1


def toy_concept(token, *, noun="animal", seed=0, count=3, name=""):
    """A concept of `count` images of random noise."""
    images = torch.rand(count, 8, 8, 3, generator=torch.Generator().manual_seed(seed))
    return concept_from_batch(images, token=token, class_noun=noun, name=name)


def toy_settings(**changes):
    """Few steps, and a state saved every second one."""
    few = {
        "recipe": "lora_ewc_dc",
        "steps": 4,
        "rank": 2,
        "learning_rate": 0.05,
        "fisher_draws": 5,
        "checkpoint_every": 2,
    }
    return TrainSettings(**{**few, **changes})


def trained_task(
    denoiser, *, rank=2, seed=0, num_earlier=3, num_images=3, latents=None, masks=None, penalty=lambda: None, **more
):
    """A task whose adapter holds random numbers, on any base."""
    draws = torch.Generator().manual_seed(seed)
    adapter = LoraAdapter(denoiser.unet, rank, float(rank), draws)
    for parameter in adapter.parameters.values():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draws)
    if latents is None:
        latents = torch.randn(num_images, 1, 1, 2, generator=draws)
    words = ("one", "two dogs", "three red cats", "four", "five blue birds")
    with torch.no_grad():
        earlier = [denoiser.encode_prompt(f"photo of {text}", {}) for text in words[:num_earlier]]
        prompt, base_prompt = (denoiser.encode_prompt(text, {}) for text in ("photo of a fox", "photo of a person"))
    states = [
        {name: 0.3 * torch.randn(value.shape, generator=draws) for name, value in adapter.parameters.items()}
        for _ in earlier
    ]
    return TrainedTask(
        denoiser,
        latents,
        masks,
        base_prompt,
        prompt,
        earlier,
        adapter,
        earlier_adapter=lambda j: states[j],
        penalty=penalty,
        seed=f"{seed}/1",
        **more,
    )


def files_below(folder):
    """Every file by its relative name, with its bytes."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
