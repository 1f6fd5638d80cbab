"""Train the embedded base: autoencoder, then text encoder and U-Net on its latents; resumable, deterministic.

Run it again with the same arguments to go on from the newest checkpoint. With the same seed, thread count and torch
build the result is the same however often it was interrupted: every draw depends only on (seed, step).
Where the checkpoints are gone, `--start-from` goes on from exported weights with a fresh optimizer.
"""

import argparse
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scripts.tiny_base.emoji import STYLES, EmojiGrid, concept_names
from trainer.bases.tiny.autoencoder import Autoencoder
from trainer.bases.tiny.base import scaled_linear_alphas_cumprod
from trainer.bases.tiny.text import END, START, UNKNOWN, TextEncoder, WordTokenizer, frame
from trainer.bases.tiny.unet import UNet
from trainer.disk.files import write_tensors
from trainer.losses.denoising import add_noise

IMAGE_SIZE = 64
TEMPLATE = "photo of a"
AUTOENCODER_BATCH, UNET_BATCH = 32, 32
CHECKPOINT_EVERY = 200
log = logging.getLogger(__name__)


def vocabulary() -> list[str]:
    """Every word of the captions, special tokens first."""
    pairs = concept_names("seen")
    text = " ".join([TEMPLATE, *STYLES, *(f"{noun} {name}" for noun, name in pairs)])
    return [START, END, UNKNOWN, *sorted(set(re.findall(r"[a-z0-9]+", text.lower())))]


def images_of(node_modules: Path, cache: Path) -> Tensor:
    """The seen drawings in order, uint8 [N, 3, 64, 64], rendered once."""
    if not cache.exists():
        size = (IMAGE_SIZE, IMAGE_SIZE)
        drawings = EmojiGrid(node_modules).drawings("seen")
        pixels = [np.asarray(d.image.resize(size, Image.Resampling.LANCZOS)) for d in drawings]
        save_file({"images": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()}, cache)
    return load_file(cache)["images"]


def learning_rate(step: int, start: int, steps: int, peak: float, warmup: int = 100, decay: float = 0.3) -> float:
    """Linear warm-up from `start`, constant, then linear to zero over the last `decay` of the steps."""
    return peak * min(1.0, (step - start + 1) / warmup, (steps - step) / (decay * steps))


class Stage:
    """One training stage: modules, their moving average, optimizer and step, saved and restored as safetensors.

    Args:
        modules: what is trained, as initialised.
        path: the checkpoint; gone on from when it is there.
        peak: the highest learning rate.
        start: the number of steps behind `modules` as they are handed in.
    """

    def __init__(self, modules: nn.ModuleDict, path: Path, peak: float, start: int = 0) -> None:
        self.modules, self.path, self.peak, self.start, self.step = modules, path, peak, start, start
        self.average = {key: value.clone() for key, value in modules.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            modules.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )
        if path.exists():
            self._restore(load_file(path))
            log.info("resumed %s at step %d", path.name, self.step)

    def _restore(self, saved: dict[str, Tensor]) -> None:
        part = lambda prefix: {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}  # noqa: E731
        self.modules.load_state_dict(part("live."))
        self.average = part("average.")
        self.start, self.step = int(saved["start"]), int(saved["step"])
        for name, parameter in self.modules.named_parameters():
            state = {key: saved[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step - self.start)), **state}

    def save(self) -> None:
        """Write everything beside the old file, then replace it."""
        saved = {f"live.{k}": v for k, v in self.modules.state_dict().items()}
        saved |= {f"average.{k}": v for k, v in self.average.items()}
        for name, parameter in self.modules.named_parameters():
            state = self.optimizer.state[parameter]
            saved |= {f"{key}.{name}": state[key] for key in ("exp_avg", "exp_avg_sq")}
        saved |= {"start": torch.tensor(self.start), "step": torch.tensor(self.step)}
        write_tensors(self.path, saved)

    def run(self, steps: int, seed: int, loss: Callable[[torch.Generator], Tensor]) -> None:
        """Train until `steps`; `loss` draws its batch from the generator it is handed."""
        running = 0.0
        while self.step < steps:
            rng = torch.Generator().manual_seed(seed * 1_000_003 + self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, self.start, steps, self.peak)
            self.optimizer.zero_grad(set_to_none=True)
            value = loss(rng)
            value.backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(0.9995, self.step / (self.step + 10))
            for key, current in self.modules.state_dict().items():
                if current.dtype.is_floating_point:
                    self.average[key].lerp_(current, 1 - decay)
            running += value.item()
            if self.step % CHECKPOINT_EVERY == 0 or self.step == steps:
                self.save()
                log.info("%s step %d/%d loss %.4f", self.path.stem, self.step, steps, running / CHECKPOINT_EVERY)
                running = 0.0


def draw_images(images: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """A random batch in -1..1, flipped and shifted on its white ground."""
    batch = images[torch.randint(len(images), (count,), generator=rng)].float() / 127.5 - 1
    if torch.rand((), generator=rng) < 0.5:
        batch = batch.flip(-1)
    shift = torch.randint(-4, 5, (2,), generator=rng).tolist()
    return batch.roll(shift, dims=(-2, -1))


def train_autoencoder(images: Tensor, work: Path, steps: int, seed: int) -> Autoencoder:
    """Reconstruction with L1 + MSE; noise on the latents makes the decoder forgiving."""
    torch.manual_seed(seed)
    model = Autoencoder().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(rng: torch.Generator) -> Tensor:
        batch = draw_images(images, AUTOENCODER_BATCH, rng)
        latents = model.encode(batch)
        latents = latents + 0.1 * torch.randn(latents.shape, generator=rng)
        output = model.decode(latents)
        return F.l1_loss(output, batch) + F.mse_loss(output, batch)

    stage = Stage(nn.ModuleDict({"autoencoder": model}), work / "autoencoder.safetensors", 1.5e-3)
    stage.run(steps, seed, loss)
    model.load_state_dict({k.removeprefix("autoencoder."): v for k, v in stage.average.items()})
    return model.eval()


def reconstruction_psnr(model: Autoencoder, images: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, mean over the images."""
    with torch.no_grad():
        errors = [
            F.mse_loss(model.decode(model.encode(b)), b, reduction="none").mean((1, 2, 3))
            for b in (images.float() / 127.5 - 1).split(64)
        ]
    return float((10 * torch.log10(4 / torch.cat(errors))).mean())


def draw_caption(index: int, choice: float) -> str:
    """A caption of drawing `index`: mostly "style name", sometimes only the name, its class noun, or nothing."""
    noun, name = concept_names_seen[index // len(STYLES)]
    if choice < 0.10:
        return ""
    if choice < 0.16:
        return f"{TEMPLATE} {noun}"
    if choice < 0.30:
        return f"{TEMPLATE} {name}"
    return f"{STYLES[index % len(STYLES)]} {name}"


concept_names_seen = concept_names("seen")


def train_unet(
    latents: Tensor, work: Path, steps: int, seed: int, start_from: Path | None
) -> tuple[TextEncoder, UNet, int]:
    """Noise prediction with caption dropout; text encoder and U-Net together. Also returns the steps behind them."""
    torch.manual_seed(seed + 1)
    tokenizer = WordTokenizer(vocabulary())
    text, unet, start = TextEncoder(len(tokenizer.words)), UNet(), 0
    # Words must outweigh positions: with PyTorch's default of 1 for both the prompt was hardly used after 1,000 steps.
    nn.init.normal_(text.word_vectors, std=0.5)
    nn.init.normal_(text.text_model.embeddings.position_embedding.weight, std=0.05)
    for module in unet.modules():
        output = {"ResBlock": "out_layers", "SpatialTransformer": "proj_out"}.get(type(module).__name__)
        if output:
            layer = getattr(module, output)
            nn.init.zeros_((layer[-1] if isinstance(layer, nn.Sequential) else layer).weight)
    if start_from:
        load_exported(text, start_from / "text.safetensors")
        start = int(load_exported(unet, start_from / "unet.safetensors")["unet_steps"])
    kept = scaled_linear_alphas_cumprod()
    first, last = tokenizer.ids[START], tokenizer.ids[END]

    def loss(rng: torch.Generator) -> Tensor:
        indices = torch.randint(len(latents), (UNET_BATCH,), generator=rng)
        choices = torch.rand(UNET_BATCH, generator=rng).tolist()
        captions = [draw_caption(i, c) for i, c in zip(indices.tolist(), choices, strict=True)]
        ids = torch.tensor([frame(tokenizer.encode(caption), first, last) for caption in captions])
        context = text(text.word_vectors[ids])
        t = torch.randint(1000, (UNET_BATCH,), generator=rng)
        noise = torch.randn(latents[indices].shape, generator=rng)
        x_t = add_noise(latents[indices], noise, kept[t])
        return F.mse_loss(unet(x_t, t, context), noise)

    stage = Stage(nn.ModuleDict({"text": text, "unet": unet}), work / "unet.safetensors", 7e-4, start)
    stage.run(steps, seed, loss)
    for name, module in (("text", text), ("unet", unet)):
        module.load_state_dict(
            {k.removeprefix(f"{name}."): v for k, v in stage.average.items() if k.startswith(f"{name}.")}
        )
    return text, unet, stage.step


def load_exported(module: nn.Module, file: Path) -> dict[str, str]:
    """Load the weights of `file` that `export` wrote into `module`; returns the facts in its header."""
    with safe_open(file, "pt") as opened:
        module.load_state_dict({key: opened.get_tensor(key).float() for key in opened.keys()})  # noqa: SIM118
        return dict(opened.metadata())


def export(folder: Path, autoencoder: Autoencoder, text: TextEncoder, unet: UNet, facts: dict[str, str]) -> None:
    """Write the moving averages as fp16 safetensors and the vocabulary as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("autoencoder", autoencoder), ("text", text), ("unet", unet)):
        weights = {k: v.half().contiguous() for k, v in module.state_dict().items() if v.dtype.is_floating_point}
        save_file(weights, folder / f"{name}.safetensors", metadata=facts)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary(), indent=0) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the arguments, train what is missing, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/tiny_base"), help="checkpoints go here")
    parser.add_argument("--node-modules", type=Path, required=True, help="where npm put the emoji packages")
    parser.add_argument("--out", type=Path, default=Path("trainer/bases/tiny/weights"), help="exported weights")
    parser.add_argument("--autoencoder-steps", type=int, default=1700)
    parser.add_argument("--unet-steps", type=int, default=18_600)
    parser.add_argument("--start-from", type=Path, help="exported weights to go on from when there is no checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    images = images_of(args.node_modules, args.work / "images.safetensors")
    if args.start_from:
        autoencoder = Autoencoder()
        load_exported(autoencoder, args.start_from / "autoencoder.safetensors")
        autoencoder.eval()
    else:
        autoencoder = train_autoencoder(images, args.work, args.autoencoder_steps, args.seed)
    psnr = reconstruction_psnr(autoencoder, images[::7])
    log.info("autoencoder %.2f dB", psnr)
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(b.float() / 127.5 - 1) for b in images.split(64)])
    log.info("latents mean %.3f std %.3f", latents.mean(), latents.std())
    text, unet, steps = train_unet(latents, args.work, args.unet_steps, args.seed, args.start_from)
    facts = {"seed": str(args.seed), "unet_steps": str(steps), "autoencoder_psnr_db": f"{psnr:.2f}"}
    export(args.out, autoencoder, text, unet, facts)


if __name__ == "__main__":
    main()
