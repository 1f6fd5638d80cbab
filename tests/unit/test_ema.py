"""The moving average: its numbers by hand, and that it is what everything after the training sees."""

import pytest
import torch

from tests.toy import ENCODER, ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.adapters.kohya import from_kohya, kohya_prefixes
from trainer.adapters.lora import LoraAdapter
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.teach import teach
from trainer.training.optimizers import check_optimizer
from trainer.training.state import TrainState

UNET = ToyUNet().requires_grad_(False)


class Cancel(BaseException):
    pass


def run(root, stop_at=None, base=None, **changes):
    """Two concepts; stopped once in the second where (phase, step) is `stop_at`."""
    settings = toy_settings(**{"recipe": "lora_ewc", "ema_decay": 0.5, "steps": 5, **changes})
    sequence = teach(ToyBase(UNET), toy_concept("fox"), settings, ConceptSequence(root, ToyBase(UNET).fingerprint))
    seen = []

    def on_step(record):
        seen.append(record)
        if (record.phase, record.step) == stop_at and len(seen) == record.step + (record.phase != "train") * 5:
            raise Cancel

    second = lambda: teach(base or ToyBase(UNET), toy_concept("cat", seed=1), settings, sequence, on_step)  # noqa: E731
    if stop_at is not None:
        with pytest.raises(Cancel):
            second()
    return second()


def test_the_average_by_hand():
    base = ToyBase()
    adapter = LoraAdapter(base.unet, 2, 2.0, torch.Generator().manual_seed(0))
    state = TrainState(adapter, base.word_vectors("animal"), toy_settings(ema_decay=0.25))
    token, start = state.token[ENCODER], state.frozen_token()[ENCODER]
    for step, number in enumerate((1.0, 2.0, 3.0), start=1):
        state.step = step
        token.data.fill_(number)
        state.update_average()
    # decays 2/11 and then 1/4, below 3/12 and 4/13
    first = start * 2 / 11 + 9 / 11
    torch.testing.assert_close(state.average[f"token.{ENCODER}"], 0.25 * (0.25 * first + 0.75 * 2) + 0.75 * 3)
    down = next(name for name in state.average if name.endswith("lora_down"))
    torch.testing.assert_close(state.average[down], adapter.parameters[down].detach())
    state.finish()
    assert torch.equal(token.detach(), state.average[f"token.{ENCODER}"]) and not state.whole


def test_nothing_is_averaged_at_decay_zero():
    base = ToyBase()
    adapter = LoraAdapter(base.unet, 2, 2.0, torch.Generator())
    state = TrainState(adapter, base.word_vectors("animal"), toy_settings())
    assert state.average == {} and not [name for name in state.state_dict() if name.startswith("average")]


@pytest.mark.parametrize("recipe", ["lora", "textual_inversion", "custom_diffusion", "c_lora"])
def test_what_is_saved_is_the_average_of_the_steps(recipe, tmp_path):
    """Against the trajectory of a training without it: the steps themselves are the same."""
    base, trace = ToyBase(UNET), []
    sequence, settings = ConceptSequence(tmp_path / "plain", base.fingerprint), toy_settings(recipe=recipe, steps=5)
    plain = TrainState.update_average
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            TrainState,
            "update_average",
            lambda state: (trace.append({n: v.detach().clone() for n, v in state.parameters.items()}), plain(state)),
        )
        teach(base, toy_concept("fox"), settings, sequence)
    averaged, other = ToyBase(UNET), toy_settings(recipe=recipe, steps=5, ema_decay=0.3)
    done = teach(averaged, toy_concept("fox"), other, ConceptSequence(tmp_path / "ema", base.fingerprint))
    expected = {ENCODER: base.word_vectors("animal")[ENCODER]}
    average = expected[ENCODER]
    for step, theta in enumerate(trace, start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * theta[f"token.{ENCODER}"]
    assert len(trace) == 5
    torch.testing.assert_close(done.tokens()["fox"][ENCODER], average)
    assert not torch.allclose(average, trace[-1][f"token.{ENCODER}"], atol=1e-6)


def test_the_lora_on_disk_and_the_anchor_are_what_the_model_carries(tmp_path):
    base = ToyBase(UNET)
    done = run(tmp_path, base=base)
    layers = ["middle_block.1.attn2.to_k", "middle_block.1.attn2.to_v"]
    lora, carried = from_kohya(done.lora(done.tasks[1]), layers, kohya_prefixes(base.original)), done.method_state()
    for name in layers:
        torch.testing.assert_close(base.unet.get_submodule(name).get_delta_weight("continual"), lora[name].delta)
        assert any(torch.equal(value, lora[name].down) for value in carried.values())  # theta*


@pytest.mark.parametrize("stop_at", [("train", 3), ("train", 5), ("consolidate", 1), ("fisher", 1)])
def test_cancelled_and_resumed_to_the_bit(stop_at, tmp_path):
    recipe = {"recipe": "lora_dsc_ewc", "consolidation": 0.4}
    run(tmp_path / "whole", **recipe)
    if stop_at[0] == "fisher":
        recipe["recipe"] = "lora_ewc"
        run(tmp_path / "plain", **recipe)
    run(tmp_path / "cut", stop_at, **recipe)
    whole = "plain" if stop_at[0] == "fisher" else "whole"
    assert files_below(tmp_path / "cut") == files_below(tmp_path / whole)


def test_schedule_free_refuses_it():
    settings = toy_settings(optimizer="adamw_schedulefree", ema_decay=0.9)
    with pytest.raises(ContinualLoraError, match=r'"ema_decay" should be 0: .* It is 0\.9\. Set it to 0'):
        check_optimizer(settings, torch.device("cpu"))
