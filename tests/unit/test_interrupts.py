"""Stopped inside any forward or backward pass of any phase: the same bytes in the end, and nothing left on the base."""

import shutil
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tests.toy import ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.disk.sequence import ConceptSequence
from trainer.evaluation.dc_accuracy import dc_accuracy
from trainer.evaluation.fisher_spectrum import fisher_spectrum, restored_task
from trainer.methods.dsc import DSC
from trainer.teach import teach

UNET = ToyUNet().requires_grad_(False)
RECIPE = "lora_dsc_ewc_dc"  # all phases: training under a penalty, consolidation, Fisher


class Interrupt(BaseException):
    pass


class Stoppable(ToyBase):
    """A view that an interrupt may reach inside a pass.

    The first of the U-Net's layers has answered when it comes in a forward pass, as a host's operations raise, and the
    last one's gradient is there when it comes in a backward pass.
    """

    def __init__(self, stop_forward=0, stop_backward=0):
        super().__init__(UNET)
        self.stops, self.counts = {"forward": stop_forward, "backward": stop_backward}, {"forward": 0, "backward": 0}
        self.phases = []
        self.unet.middle_block[1].attn2.to_k.register_forward_hook(self._forward)

    def _count(self, way):
        self.counts[way] += 1
        if self.counts[way] == self.stops[way]:
            raise Interrupt

    def _forward(self, module, args, output):
        self._count("forward")

    def predict(self, x_t, t, conditioning):
        prediction = super().predict(x_t, t, conditioning)
        if prediction.requires_grad:
            prediction.register_hook(lambda gradient: self._count("backward"))
        return prediction


def second(sequence, base, **changes):
    settings = toy_settings(steps=2, fisher_draws=4, recipe=RECIPE, consolidation=1.0, batch_size=2, **changes)
    return teach(base, toy_concept("cat", seed=1), settings, sequence, on_step=lambda r: base.phases.append(r.phase))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("first") / "pets"
    settings = toy_settings(steps=2, fisher_draws=2, recipe=RECIPE)
    sequence = ConceptSequence.create(root, ToyBase(UNET).fingerprint)
    taught = teach(ToyBase(UNET), toy_concept("fox"), settings, sequence)

    def copy_to(folder):
        shutil.copytree(root, folder)
        return replace(taught, root=folder)

    return copy_to


def hooks_of(unet):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in unet.modules() for kind in kinds]


def is_as_it_was(base, before):
    """The shared original to the bit, no hook but the test's own on the view, torch as outside of a training."""
    assert all(torch.equal(value, before[name]) for name, value in UNET.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in UNET.parameters())
    assert sum(hooks_of(UNET)) == 0 and sum(hooks_of(base.unet)) == 1
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu") and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_inside_any_pass_of_any_phase(way, low_memory, first, tmp_path):
    before = {name: value.clone() for name, value in UNET.state_dict().items()}
    whole = Stoppable()
    second(first(tmp_path / "whole"), whole, low_memory=low_memory)
    reference = files_below(tmp_path / "whole")
    reached = set()
    for count in range(1, whole.counts[way] + 1):
        root = tmp_path / f"{count}"
        sequence, base = first(root), Stoppable(**{f"stop_{way}": count})
        with pytest.raises(Interrupt):
            second(sequence, base, low_memory=low_memory)
        reached.add(base.phases[-1] if base.phases else "first step")
        is_as_it_was(base, before)
        assert ConceptSequence.open(root) == sequence
        second(sequence, Stoppable(), low_memory=low_memory)
        assert files_below(root) == reference, count
    assert reached == {"first step", "train", "consolidate", "fisher"}


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "adamw_schedulefree"])
def test_a_consolidation_goes_on_from_its_own_step(optimizer, first, tmp_path):
    """Stopped after a step or while the Fisher is measured; or killed, with a state as old as the setting says."""

    def taught(root, stop=None, copy=None):
        steps = []

        def on_step(record):
            steps.append((record.phase, record.step))
            if copy and steps[-1] == copy:
                shutil.copytree(root, f"{root} copied")
            if steps[-1] == stop:
                raise Interrupt

        more = {
            "consolidation": 3.0,
            "batch_size": 2,
            "optimizer": optimizer,
            "checkpoint_every": 3,
            "token_learning_rate": 0.05,
        }
        settings = toy_settings(steps=2, fisher_draws=4, recipe=RECIPE, **more)
        sequence = ConceptSequence.open(root) if root.exists() else first(root)
        teach(ToyBase(UNET), toy_concept("cat", seed=1), settings, sequence, on_step)
        return [step for phase, step in steps if phase == "consolidate"]

    whole = tmp_path / "whole"
    assert taught(whole, copy=("consolidate", 4)) == [1, 2, 3, 4, 5, 6]
    stops = {("consolidate", 1): [2, 3, 4, 5, 6], ("consolidate", 5): [6], ("consolidate", 6): [6], ("fisher", 1): [6]}
    for number, (stop, rest) in enumerate(stops.items()):
        root = tmp_path / str(number)
        with pytest.raises(Interrupt):
            taught(root, stop)
        assert taught(root) == rest and files_below(root) == files_below(whole)
    killed = tmp_path / "whole copied"
    assert taught(killed) == [4, 5, 6] and files_below(killed) == files_below(whole)


def test_a_damaged_state_of_a_consolidation_begins_it_again(first, tmp_path):
    for name in ("whole", "cut"):
        sequence, phases = first(tmp_path / name), []

        def stop(record, name=name):
            if name == "cut" and (record.phase, record.step) == ("consolidate", 1):
                raise Interrupt

        settings = toy_settings(steps=2, fisher_draws=4, recipe=RECIPE, consolidation=1.0)
        with pytest.raises(Interrupt) if name == "cut" else nullcontext():
            teach(ToyBase(UNET), toy_concept("cat", seed=1), settings, sequence, stop)
    (state,) = (tmp_path / "cut" / "partial").glob("*.consolidation.safetensors")
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.warns(UserWarning, match="should go on from its state on disk"):
        teach(ToyBase(UNET), toy_concept("cat", seed=1), settings, sequence, lambda r: phases.append(r.phase))
    assert phases.count("train") == 0 and phases.count("consolidate") == 2
    kept = {name: data for name, data in files_below(tmp_path / "cut").items() if "damaged" not in name}
    assert kept == files_below(tmp_path / "whole")


def test_a_teacher_never_stays_in_the_students_place(first, tmp_path):
    """Interrupted while the adapter carries a teacher's numbers, it has its own again."""
    held = []

    def consolidate(method, task):
        own = {name: value.data_ptr() for name, value in task.adapter.parameters.items()}
        try:
            yield from plain(method, task)
        finally:
            held.append({name: value.data_ptr() for name, value in task.adapter.parameters.items()} == own)

    plain = DSC.consolidate
    for count in range(1, 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DSC, "consolidate", consolidate)
            try:
                second(first(tmp_path / f"{count}"), Stoppable(stop_forward=2 + count))
            except Interrupt:
                continue
    assert len(held) > 10 and all(held)


@pytest.mark.parametrize("count", range(1, 9))
def test_inside_an_evaluation(count, first, tmp_path):
    line = first(tmp_path / "pets")
    line = second(line, Stoppable())
    files, before = files_below(tmp_path), {name: value.clone() for name, value in UNET.state_dict().items()}

    def accuracies(stop=0):
        bases = []

        def opened():
            bases.append(Stoppable(stop_forward=stop))
            return bases[-1]

        return bases, lambda: dc_accuracy(opened, line, [1], trials=4)

    def spectra(stop=0):
        base = Stoppable(stop_backward=stop)
        return [base], lambda: fisher_spectrum(restored_task(base, line), toy_settings(batch_size=1), 6)

    for evaluation in (accuracies, spectra):
        (_, plain), (bases, stopped) = evaluation(), evaluation(count)
        expected = plain()
        with pytest.raises(Interrupt):
            stopped()
        is_as_it_was(bases[-1], before)
        assert files_below(tmp_path) == files
        again = evaluation()[1]()
        if evaluation is accuracies:
            assert again == expected
        else:
            for objective, layers in expected.items():
                assert all(torch.equal(again[objective][n].diagonal, s.diagonal) for n, s in layers.items())
