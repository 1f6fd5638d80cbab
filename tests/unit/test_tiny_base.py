"""The embedded base as a `Denoiser`: prompts with learned tokens, the schedule, images there and back."""

import pytest
import torch

from trainer.bases.tiny.base import ENCODER, TinyBase
from trainer.bases.tiny.text import END, MAX_LENGTH, START, UNKNOWN, WIDTH, WordTokenizer, frame
from trainer.errors import ContinualLoraError


def test_a_token_that_is_a_word_gives_that_word(tiny):
    vector = tiny.word_vectors("photo")
    plain = tiny.encode_prompt("photo of a photo", {})
    learned = tiny.encode_prompt("<V1> of a <V1>", {"V1": vector})
    assert plain.context.shape == (1, MAX_LENGTH, WIDTH) and plain.pooled is None
    assert torch.equal(plain.context, learned.context)
    assert not torch.equal(plain.context, tiny.encode_prompt("photo of a", {}).context)


def test_the_graph_of_a_token_is_kept(tiny):
    vector = torch.nn.Parameter(tiny.word_vectors("photo")[ENCODER].clone())
    tiny.encode_prompt("photo of a <V1> animal", {"V1": {ENCODER: vector}}).context.square().sum().backward()
    assert vector.grad.abs().max() > 0


def test_prompts_start_with_start_and_are_cut_or_padded_with_end(tiny):
    text, ids = tiny.weights.text, tiny.weights.tokenizer.ids
    expected = frame(tiny.weights.tokenizer.encode("photo of a"), ids[START], ids[END])
    assert torch.equal(tiny.encode_prompt("photo of a", {}).context, text(text.word_vectors[torch.tensor([expected])]))
    long = "photo " * 40
    cut = frame(tiny.weights.tokenizer.encode(long), ids[START], ids[END])
    assert len(cut) == MAX_LENGTH and cut[-1] == ids[END] and cut[-2] == ids["photo"]
    assert torch.equal(tiny.encode_prompt(long, {}).context, text(text.word_vectors[torch.tensor([cut])]))


def test_word_vector_is_the_mean_of_the_words(tiny):
    one, two, both = (tiny.word_vectors(text)[ENCODER] for text in ("photo", "of", "photo of"))
    torch.testing.assert_close(both, (one + two) / 2)


def test_tokenizer_by_hand():
    tokenizer = WordTokenizer([START, END, UNKNOWN, "a", "red", "fox", "2"])
    assert tokenizer.encode("A red,  FOX-2!") == [3, 4, 5, 6] and tokenizer.encode("a zebra") == [3, 2]
    assert tokenizer.encode("") == []
    assert frame([3, 4], 0, 1) == [0, 3, 4, *[1] * (MAX_LENGTH - 3)]


def test_schedule_is_that_of_stable_diffusion(tiny):
    signal, spread = tiny.scales(torch.arange(1000))
    a = signal.square()
    # Of the published scheduler configuration: 1 - 0.00085, and the square of the known last signal rate 0.0683.
    assert a[0].item() == pytest.approx(0.99915, abs=1e-6) and a[999].item() == pytest.approx(0.0047, abs=5e-5)
    assert (signal.diff() < 0).all()
    torch.testing.assert_close(a + spread.square(), torch.ones(1000))


def test_images_become_latents_and_images(tiny):
    with torch.no_grad():
        latents = tiny.encode_images(torch.rand(2, 3, 64, 64))
        images = tiny.decode_latents(latents)
    assert latents.shape == (2, 8, 8, 8) and images.shape == (2, 3, 64, 64)
    assert images.min() >= 0 and images.max() <= 1


def test_prompt_and_time_reach_the_prediction(tiny):
    x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prompts = [tiny.encode_prompt(text, {}) for text in ("photo of a", "photo")]
        first = tiny.predict(x, torch.tensor([10]), prompts[0])
        assert first.shape == x.shape
        assert not torch.equal(first, tiny.predict(x, torch.tensor([10]), prompts[1]))
        assert not torch.equal(first, tiny.predict(x, torch.tensor([900]), prompts[0]))
        pair = tiny.predict(x.repeat(2, 1, 1, 1), torch.tensor([10, 10]), prompts[0].expand(2))
    torch.testing.assert_close(pair, first.repeat(2, 1, 1, 1), rtol=1e-4, atol=1e-5)


def test_missing_weights_are_an_error_of_three_facts(tmp_path):
    (tmp_path / "unet.safetensors").touch()
    with pytest.raises(ContinualLoraError) as caught:
        TinyBase(tmp_path)
    text = str(caught.value)
    assert "needs 4 files" in text and "Missing: `text.safetensors`" in text and "unet" not in text.split("Missing")[1]
