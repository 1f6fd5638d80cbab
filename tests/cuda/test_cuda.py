"""Training on a CUDA GPU: what the CPU computes, in every number format and with every optimizer, and nothing left."""

import gc

import pytest
import torch

from tests.toy import toy_concept
from trainer.bases.tiny.base import TinyBase
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.recipes import RECIPES
from trainer.settings import TrainSettings
from trainer.teach import teach

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


def settings(**changes):
    few = {"steps": 6, "batch_size": 4, "rank": 4, "fisher_draws": 4, "learning_rate": 1e-3, "consolidation": 0.5}
    return TrainSettings(**{"mixed_precision": "no", **few, **changes})


def taught(root, folder, device, concepts=("fox", "cat"), **changes):
    """A sequence of its own, and the losses of all its steps."""
    sequence, losses = None, []
    for name in concepts:
        base = TinyBase(folder, device)
        sequence = sequence or ConceptSequence(root, base.fingerprint)
        concept = toy_concept(name)
        sequence = teach(base, concept, settings(**changes), sequence, lambda record: losses.append(record.loss))
    return sequence, losses


def distance(one, other):
    """Of the last LoRA from another one, in norms of that one."""
    mine, theirs = (line.lora(line.tasks[-1]) for line in (one, other))
    assert mine.keys() == theirs.keys()
    both = [torch.cat([values[name].flatten().float() for name in sorted(values)]) for values in (mine, theirs)]
    return float((both[0] - both[1]).norm() / both[1].norm())


@pytest.fixture(autouse=True)
def _exact():
    """Full fp32, as on the CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_learns_what_it_learns_on_the_cpu(recipe, tmp_path, random_tiny_folder):
    (cpu, expected), (gpu, losses) = (
        taught(tmp_path / device, random_tiny_folder, device, recipe=recipe) for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-3, atol=1e-5)
    if recipe != "textual_inversion":
        assert distance(gpu, cpu) < 1e-2


@pytest.mark.parametrize("mixed_precision", ["auto", "bf16", "fp16"])
def test_number_formats(mixed_precision, tmp_path, random_tiny_folder):
    recipe = {"recipe": "lora_dsc_ewc_dc"}
    _, expected = taught(tmp_path / "plain", random_tiny_folder, "cuda", **recipe)
    _, losses = taught(tmp_path / "mixed", random_tiny_folder, "cuda", mixed_precision=mixed_precision, **recipe)
    assert losses != expected
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("optimizer", "package", "changes"),
    [
        ("adamw", "torch", {}),
        ("adamw8bit", "bitsandbytes", {"rank": 32}),
        ("prodigy", "prodigyopt", {"learning_rate": 1.0, "token_learning_rate": 1.0}),
        ("adamw_schedulefree", "schedulefree", {"schedule": "constant"}),
    ],
)
def test_a_training_goes_on_where_it_stopped(optimizer, package, changes, tmp_path, random_tiny_folder):
    pytest.importorskip(package)
    changes = {"optimizer": optimizer, "checkpoint_every": 3, "warmup_steps": 0, **changes}
    whole, _ = taught(tmp_path / "whole", random_tiny_folder, "cuda", ["fox"], **changes)

    def stop(record):
        if record.step == 4:
            raise KeyboardInterrupt

    base = TinyBase(random_tiny_folder, "cuda")
    sequence = ConceptSequence(tmp_path / "cut", base.fingerprint)
    with pytest.raises(KeyboardInterrupt):
        teach(base, toy_concept("fox"), settings(**changes), sequence, stop)
    resumed, losses = taught(tmp_path / "cut", random_tiny_folder, "cuda", ["fox"], **changes)
    assert sum(loss > 0 for loss in losses) < 6  # the first steps were not made again
    assert distance(resumed, whole) < 1e-3


def test_half_the_images_where_the_whole_batch_does_not_fit(tmp_path, random_tiny_folder):
    changes = {"recipe": "lora", "batch_size": 64, "steps": 2}
    torch.cuda.reset_peak_memory_stats()
    whole, _ = taught(tmp_path / "whole", random_tiny_folder, "cuda", ["fox"], **changes)
    _empty()
    peak, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.75 * peak / total)
    with pytest.warns(UserWarning, match="64 images a pass"):
        halved, _ = taught(tmp_path / "halved", random_tiny_folder, "cuda", ["fox"], **changes)
    assert distance(halved, whole) < 1e-2
    base = TinyBase(random_tiny_folder, "cuda")
    _empty()
    torch.cuda.set_per_process_memory_fraction(0.4 * peak / total)
    sequence = ConceptSequence(tmp_path / "failed", base.fingerprint)
    with pytest.warns(UserWarning, match="64"), pytest.raises(ContinualLoraError, match="ran out of memory"):
        teach(base, toy_concept("fox"), settings(**changes), sequence)


def test_nothing_stays_on_the_device(tmp_path, random_tiny_folder):
    taught(tmp_path / "first", random_tiny_folder, "cuda")  # what the libraries keep for themselves
    _empty()
    before = torch.cuda.memory_allocated()
    taught(tmp_path / "second", random_tiny_folder, "cuda", recipe="lora_dsc_ewc_dc")
    _empty()
    assert torch.cuda.memory_allocated() == before


def _empty():
    gc.collect()
    torch.cuda.empty_cache()
