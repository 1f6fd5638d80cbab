"""A device without room for a step: half the images a pass, once, the same result; then a message, the state kept."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.settings import TrainSettings
from trainer.teach import teach
from trainer.training.memory import Halving, is_out_of_memory

UNET = ToyUNet().requires_grad_(False)
SETTINGS = toy_settings(recipe="lora", steps=4, batch_size=4, checkpoint_every=100)


class SmallDevice(ToyBase):
    """Has room for `room` images a pass; keeps the number of images of each pass."""

    def __init__(self, room):
        super().__init__(UNET)
        self.room, self.images = room, []

    def predict(self, x_t, t, conditioning):
        self.images.append(len(x_t))
        if len(x_t) > self.room:
            raise torch.cuda.OutOfMemoryError("no room")
        return super().predict(x_t, t, conditioning)


def taught(root, base, settings=SETTINGS):
    return teach(base, toy_concept("fox"), settings, ConceptSequence(root, ToyBase(UNET).fingerprint))


def test_half_the_images_a_pass_and_the_same_lora(tmp_path):
    small = SmallDevice(2)
    with pytest.warns(UserWarning, match="Step 1 did not fit into memory with 4 images a pass"):
        halved = taught(tmp_path / "small", small)
    assert small.images == [4, *[2] * 8]  # the first attempt, then two passes a step
    whole = taught(tmp_path / "large", SmallDevice(4))
    mine, theirs = halved.lora(halved.tasks[0]), whole.lora(whole.tasks[0])
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-7)


def test_halves_draw_the_same_prior_images(tmp_path):
    """And the same images of the concept, which are drawn after them where gradients are accumulated."""

    class SmallForGraphs(ToyBase):
        def predict(self, x_t, t, conditioning):
            if torch.is_grad_enabled() and len(x_t) > 2:
                raise torch.cuda.OutOfMemoryError("no room")
            return super().predict(x_t, t, conditioning)

    settings = replace(SETTINGS, prior_images=5, gradient_accumulation=2, caption_dropout=0.5)
    with pytest.warns(UserWarning, match="Step 1 did not fit"):
        halved = taught(tmp_path / "small", SmallForGraphs(UNET), settings)
    whole = taught(tmp_path / "large", ToyBase(UNET), settings)
    assert halved.log(halved.tasks[0])["loss"] == pytest.approx(whole.log(whole.tasks[0])["loss"], rel=1e-5)


def test_where_others_wait_for_its_part_nothing_is_halved():
    def work(passes):
        raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        Halving(SETTINGS, SimpleNamespace(shares=True)).run(work, "Step 1")


def test_a_device_without_an_error_of_its_own(tmp_path):
    class FullMemory(SmallDevice):
        def predict(self, x_t, t, conditioning):
            if len(x_t) > self.room:
                self.images.append(len(x_t))
                torch.empty(2**60)  # PyTorch's own words
            return super().predict(x_t, t, conditioning)

    small = FullMemory(2)
    with pytest.warns(UserWarning, match="Step 1 did not fit into memory"):
        taught(tmp_path, small)
    assert small.images == [4, *[2] * 8]


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 9.07 GB)"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_one):
    assert is_out_of_memory(error) is is_one


@pytest.mark.parametrize("recipe", ["lora_dsc_ewc", "lora_dsc_ewc_dc"])
@pytest.mark.parametrize("batch_size", [4, 3])
def test_what_follows_the_training_is_halved_too(recipe, batch_size, tmp_path):
    """Two concepts on a device on which the steps of the training fit, but nothing after them."""
    changes = {"fisher_draws": batch_size + 1, "consolidation": 1.0, "low_memory": True, "temperature": 0.5}
    settings = toy_settings(recipe=recipe, steps=2, batch_size=batch_size, **changes)

    def both(root, room_after_training):
        line = ConceptSequence(root, ToyBase(UNET).fingerprint)
        for seed, word in enumerate(("fox", "cat")):
            base = SmallDevice(batch_size)

            def on_step(record, base=base):
                if record.step == settings.steps and record.phase == "train":
                    base.room = room_after_training

            line = teach(base, toy_concept(word, seed=seed), settings, line, on_step)
        return line

    with pytest.warns(UserWarning) as warned:
        halved = both(tmp_path / "small", 2)
    said = [str(warning.message).partition(" did not fit into memory with ")[0] for warning in warned]
    assert said == ["Draw 1 of the Fisher", "Step 1 of the consolidation", "Draw 1 of the Fisher"]
    whole = both(tmp_path / "large", batch_size)
    for mine, theirs in (
        (halved.lora(halved.tasks[1]), whole.lora(whole.tasks[1])),
        (halved.method_state(), whole.method_state()),
    ):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6)
    figures = [line.tasks[1].values for line in (halved, whole)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


def test_an_uneven_batch_is_halved_too(tmp_path):
    settings = toy_settings(recipe="lora", steps=2, batch_size=3, gradient_accumulation=2)
    small = SmallDevice(2)
    with pytest.warns(UserWarning, match="3 images a pass"):
        halved = taught(tmp_path / "small", small, settings)
    assert small.images == [3, *[2, 1, 2, 1] * 2]
    whole = taught(tmp_path / "large", SmallDevice(3), settings)
    for name, value in halved.lora(halved.tasks[0]).items():
        torch.testing.assert_close(value, whole.lora(whole.tasks[0])[name], rtol=1e-5, atol=1e-7)


def test_a_second_failure_stops_with_the_state_kept(tmp_path):
    def later(settings):
        """Fails from the third step on, for good."""
        base = SmallDevice(4)
        original = base.predict

        def predict(x_t, t, conditioning):
            if len(base.images) >= 2:
                base.images.append(len(x_t))
                raise torch.cuda.OutOfMemoryError("no room")
            return original(x_t, t, conditioning)

        base.predict = predict
        return taught(tmp_path / "pets", base, settings)

    with (
        pytest.warns(UserWarning, match="Step 3"),
        pytest.raises(ContinualLoraError, match=r"4 images a pass \(.* half as many\)\. .*gradient_checkpointing on"),
    ):
        later(SETTINGS)
    (partial,) = (tmp_path / "pets" / "partial").glob("*.safetensors")
    assert int(load_file(partial)["step"]) == 2
    resumed = taught(tmp_path / "pets", SmallDevice(4), SETTINGS)
    undisturbed = taught(tmp_path / "other", SmallDevice(4), SETTINGS)
    folders = [each.folder(each.tasks[0]) for each in (resumed, undisturbed)]
    assert files_below(folders[0]) == files_below(folders[1])


def test_a_single_image_stops_at_once(tmp_path):
    settings = TrainSettings(**{**vars(SETTINGS), "batch_size": 1, "low_memory": True})
    with pytest.raises(ContinualLoraError, match=r"with 1 images a pass\. Close"):
        taught(tmp_path, SmallDevice(0), settings)


def test_no_room_for_the_fisher(tmp_path):
    settings = toy_settings(recipe="lora_ewc", steps=1, batch_size=1, fisher_draws=2)
    base = SmallDevice(1)
    original = base.predict

    def predict(x_t, t, conditioning):
        if len(base.images) == 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return original(x_t, t, conditioning)

    base.predict = predict
    with pytest.raises(ContinualLoraError, match="ran out of memory"):
        taught(tmp_path, base, settings)
    assert list((tmp_path / "partial").glob("*.safetensors"))


def test_no_room_before_the_first_step(tmp_path):
    class FullWhileEncoding(ToyBase):
        def encode_images(self, images):
            raise torch.cuda.OutOfMemoryError("no room")

    with pytest.raises(ContinualLoraError, match=r"ran out of memory with 4 images a pass .* lower resolution"):
        taught(tmp_path, FullWhileEncoding(UNET))
