"""The benchmark's upper bound: what all concepts at once are trained on."""

from dataclasses import replace

import torch

from benchmarks import joint
from tests.toy import toy_concept
from trainer.bases.tiny.base import TinyBase
from trainer.cli.demo import TINY_SETTINGS
from trainer.concept import prepare


def test_every_image_of_every_concept_is_drawn_under_its_own_prompt(monkeypatch):
    seen, train = {}, joint.train_concept

    def spy(base, buckets, encode, state, methods, settings, seed):
        seen.update(latents=buckets[0].latents, steps=settings.steps, methods=methods)
        with torch.no_grad():
            seen["prompts"] = encode(torch.arange(len(buckets[0].latents)), torch.Generator()).context
            words = {"cat": {"clip_l": state.token["cat clip_l"]}, "dog": {"clip_l": state.token["dog clip_l"]}}
            texts = ["photo of a <cat> animal"] * 2 + ["photo of a <dog> machine"] * 3
            seen["expected"] = torch.cat([base.encode_prompt(text, words).context for text in texts])
        return train(base, buckets, encode, state, methods, settings, seed)

    monkeypatch.setattr(joint, "train_concept", spy)
    concepts = [toy_concept("cat", seed=1, count=2), toy_concept("dog", noun="machine", seed=2)]
    base, tokens = joint.train_jointly(concepts, replace(TINY_SETTINGS, steps=2, batch_size=2))
    assert seen["steps"] == 2 * 2 and seen["methods"] == []
    assert torch.equal(seen["prompts"], seen["expected"])
    images = torch.cat([prepare(concept, 64)[0] for concept in concepts])
    torch.testing.assert_close(seen["latents"], TinyBase().encode_images(images))
    started = {token: TinyBase().word_vectors(noun) for token, noun in (("cat", "animal"), ("dog", "machine"))}
    for token, vectors in tokens.items():
        assert all(not torch.equal(vector, started[token][encoder]) for encoder, vector in vectors.items())
    drawn = joint.drawn_jointly(base, tokens, concepts[0].prompt, 1, 0, 1, 1.0)
    assert drawn.shape == (1, 3, 64, 64)
