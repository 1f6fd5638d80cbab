"""Captions at a step: dropped, shuffled, repeatable, and the same training as ever where both are off."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.toy import ENCODER, ToyBase, ToyUNet, files_below, toy_concept, toy_settings
from trainer.denoiser import Conditioning
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.planning import task_record
from trainer.task import step_rng
from trainer.teach import _Training, teach
from trainer.training.captions import shuffled_tags, split_tags, step_prompts

UNET = ToyUNet().requires_grad_(False)
PROMPT = "photo of a <fox> animal, red, in snow, (big, round:1.2)"


class Cancel(BaseException):
    pass


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def settings(**changes):
    return toy_settings(**{"recipe": "lora", **changes})


@pytest.mark.parametrize(
    ("prompt", "tags"),
    [
        ("a, b ,c", ["a", "b", "c"]),
        ("a, (b, c:1.2), d", ["a", "(b, c:1.2)", "d"]),
        ("a) , ((b, c), d)", ["a)", "((b, c), d)"]),
        (" , a,, ", ["a"]),
        ("", []),
    ],
)
def test_split_tags(prompt, tags):
    assert split_tags(prompt) == tags


def test_tags_behind_the_token_come_in_every_order_equally_often():
    tags = Counter(shuffled_tags(PROMPT, "fox", rng(seed)) for seed in range(1200))
    assert len(tags) == 6 and all(text.startswith("photo of a <fox> animal, ") for text in tags)
    assert all(sorted(split_tags(text)) == sorted(split_tags(PROMPT)) for text in tags)
    assert min(tags.values()) > 150 and max(tags.values()) < 250  # 200 each, 3.9 standard deviations


def test_what_stands_before_the_token_stays_too():
    texts = {shuffled_tags("sharp, old, a <fox>, red, wet", "fox", rng(seed)) for seed in range(20)}
    assert texts == {"sharp, old, a <fox>, red, wet", "sharp, old, a <fox>, wet, red"}
    assert {shuffled_tags("red, wet", "fox", rng(seed)) for seed in range(20)} == {"red, wet", "wet, red"}


def test_off_means_the_same_prompts_and_nothing_drawn():
    generator = rng()
    before = generator.get_state()
    assert step_prompts(["a  ,b", "c"], "fox", settings(), generator) == ["a  ,b", "c"]
    assert torch.equal(generator.get_state(), before)


def test_dropout_drops_its_share():
    dropped = step_prompts(["a"] * 4000, "fox", settings(caption_dropout=0.25), rng()).count("")
    assert abs(dropped - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5


def training(root, base, concept=None, **changes):
    chosen, concept = settings(**changes), concept or toy_concept("fox")
    sequence = ConceptSequence(root, base.fingerprint)
    return _Training(base, concept, chosen, sequence, task_record(sequence, concept, chosen), lambda record: None)


def dropped_in(step, share, count=2):
    draws = step_rng("0/1", "captions", step)
    return [torch.rand((), generator=draws).item() < share for _ in range(count)]


def test_a_step_without_any_prompt_leaves_the_token_alone(tmp_path):
    share = 0.8
    kinds = [sum(dropped_in(step, share)) for step in range(8)]
    assert kinds.count(2) >= 2 and kinds.count(2) < 8  # some steps drop both, some do not
    made = training(tmp_path, ToyBase(UNET), steps=8, caption_dropout=share)
    seen = []
    made.on_step = lambda record: seen.append(made.state.frozen_token()[ENCODER])
    start = made.state.frozen_token()[ENCODER]
    made.run()
    moved = [not torch.equal(one, other) for one, other in zip([start, *seen], seen, strict=False)]
    assert moved == [kind < 2 for kind in kinds]


def test_images_times_and_noises_are_the_same_with_and_without(tmp_path):
    drawn = []
    for changes in ({}, {"caption_dropout": 0.5, "shuffle_tags": True}):
        base, seen = ToyBase(UNET), []
        made = training(tmp_path, base, replace(toy_concept("fox"), captions=["a, b, c"] * 3), **changes)
        plain = base.predict
        base.predict = lambda x_t, t, prompt, plain=plain, seen=seen: (seen.append((x_t, t)), plain(x_t, t, prompt))[1]
        made.run()
        drawn.append(seen)
    assert len(drawn[0]) == 4
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("token_rate", [0.0, 1e-3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_image_gets_the_prompt_that_was_drawn_for_it(token_rate, shuffle, tmp_path):
    base, captions = ToyBase(UNET), ["<fox>, a, b, c", "d, <fox>, e", ""]
    concept = replace(toy_concept("fox"), captions=captions)
    changes = {"token_learning_rate": token_rate, "shuffle_tags": shuffle, "caption_dropout": 0.3}
    made = training(tmp_path, base, concept, **changes)
    encode, tokens = made.encode.of_images(made.data.prompts), {"fox": made.state.token}
    indices = torch.tensor([0, 1, 2, 0])
    texts = set()
    for seed in range(6):
        own = [concept.prompts[i] for i in indices]
        expected = step_prompts(own, "fox", made.settings, rng(seed))
        texts |= set(expected)
        contexts = encode(indices, rng(seed)).context
        for context, text in zip(contexts, expected, strict=True):
            assert torch.equal(context, base.encode_prompt(text, tokens).context[0])
    assert "" in texts and len(texts) > (5 if shuffle else 3)


def test_prompts_of_different_lengths_go_into_one_batch(tiny):
    """A long caption has two or three times the words of the empty prompt; alone it must be answered the same."""
    with torch.no_grad():
        short, other = (tiny.encode_prompt(text, {}) for text in ("", "photo of a red car"))
        long = Conditioning(torch.cat([other.context, short.context, other.context.flip(1)], 1))
        x_t, t = torch.randn(2, 8, 8, 8, generator=rng()), torch.tensor([100, 700])
        both = tiny.predict(x_t, t, Conditioning.cat([short, long]))
        for index, alone in enumerate((short, long)):
            expected = tiny.predict(x_t[index : index + 1], t[index : index + 1], alone)
            torch.testing.assert_close(both[index : index + 1], expected, rtol=1e-4, atol=1e-5)


def test_cancelled_and_resumed_to_the_bit(tmp_path):
    chosen = settings(steps=6, caption_dropout=0.4, shuffle_tags=True)
    concept = replace(toy_concept("fox"), captions=["a, b, c", "d, e", "f"])

    def run(root, stop=0):
        def on_step(record):
            if record.step == stop:
                raise Cancel

        base = ToyBase(UNET)
        teach(base, concept, chosen, ConceptSequence(root, base.fingerprint), on_step)

    run(tmp_path / "whole")
    with pytest.raises(Cancel):
        run(tmp_path / "cut", stop=3)
    run(tmp_path / "cut")
    assert files_below(tmp_path / "cut") == files_below(tmp_path / "whole")


def test_textual_inversion_refuses_dropout_before_training(tmp_path):
    base, chosen = ToyBase(UNET), toy_settings(recipe="textual_inversion", caption_dropout=0.1)
    with pytest.raises(ContinualLoraError, match=r'"caption_dropout" should be 0.*It is 0\.1\. Set it to 0\.'):
        teach(base, toy_concept("fox"), chosen, ConceptSequence(tmp_path, base.fingerprint))
    assert base.passes == 0
