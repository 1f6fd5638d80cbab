"""Min-SNR weights: by hand, against errors of x_0, in the training loss and nowhere else."""

import pytest
import torch

from tests.toy import ToyBase, toy_concept, toy_settings
from trainer.adapters.lora import LoraAdapter
from trainer.disk.sequence import ConceptSequence
from trainer.errors import ContinualLoraError
from trainer.loop import train_concept
from trainer.losses.denoising import NoisedBatch
from trainer.losses.min_snr import mean_error, min_snr_weights
from trainer.sampling import predicted_x_0_and_noise
from trainer.task import step_rng
from trainer.teach import teach
from trainer.training.buckets import Bucket
from trainer.training.prior import Prior
from trainer.training.state import TrainState

LATENTS = torch.tensor([[0.5, -1.0], [1.5, 0.25], [-0.75, 2.0]]).view(3, 1, 1, 2)
# SNR 0, 1, 4 and 9
SIGNAL = torch.tensor([0.0, 0.5, 0.8, 0.9])


@pytest.mark.parametrize(
    ("parameterization", "gamma", "weights"),
    [
        ("eps", 5.0, [1, 1, 1, 5 / 9]),
        ("eps", 1.0, [1, 1, 1 / 4, 1 / 9]),
        ("v", 5.0, [0, 1 / 2, 4 / 5, 5 / 10]),
        ("v", 1.0, [0, 1 / 2, 1 / 5, 1 / 10]),
    ],
)
def test_weights_by_hand(parameterization, gamma, weights):
    assert min_snr_weights(SIGNAL, gamma, parameterization).tolist() == pytest.approx(weights)


@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_they_are_the_capped_snr_times_the_error_of_x_0(parameterization):
    base = ToyBase(parameterization=parameterization)
    t, noise = torch.tensor([20, 300, 950]), torch.randn(3, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    batch, prompt = NoisedBatch(base, LATENTS, t, noise), base.encode_prompt("photo of a fox", {})
    (scale, spread), total = base.scales(t), 0.0
    signal = scale.square()
    for i, prediction in enumerate(batch.predict([prompt])[0]):
        x_0, _ = predicted_x_0_and_noise(
            prediction[None], batch.x_t[i : i + 1], (scale[i], spread[i]), parameterization
        )
        snr = (signal[i] / (1 - signal[i])).item()
        total += min(snr, 5.0) * (x_0 - LATENTS[i]).square().mean().item() / 3
    assert mean_error(batch, prompt, 5.0).item() == pytest.approx(total, rel=1e-4)


def first_loss(gamma, prior=None):
    settings, base = toy_settings(min_snr_gamma=gamma), ToyBase()
    state = TrainState(LoraAdapter(base.unet, 2, 2.0, torch.Generator()), base.word_vectors("animal"), settings)
    prompt = base.encode_prompt("photo of a fox", {})
    encode = lambda indices, rng: prompt.expand(len(indices))  # noqa: E731
    return next(train_concept(base, [Bucket(LATENTS)], encode, state, [], settings, "0/1", prior)).loss


def drawn_error(rng, latents, words, gamma):
    """The weighted error of two images, drawn again."""
    base = ToyBase()
    indices = torch.randint(len(latents), (2,), generator=rng)
    t, noise = torch.randint(1000, (2,), generator=rng), torch.randn(2, 1, 1, 2, generator=rng)
    errors = NoisedBatch(base, latents[indices], t, noise).error(base.encode_prompt(words, {}))
    return (errors * min_snr_weights(base.scales(t)[0].square(), gamma, "eps")).mean().item()


@pytest.mark.parametrize("gamma", [0.01, 5.0])
def test_the_training_loss_and_that_of_prior_images_are_weighted(gamma):
    rng = step_rng("0/1", "train", 0)
    own = drawn_error(rng, LATENTS, "photo of a fox", gamma)
    assert first_loss(gamma) == pytest.approx(own, rel=1e-5)
    both = own + drawn_error(rng, LATENTS[:2], "photo of a animal", gamma)
    prior = Prior(LATENTS[:2], ToyBase().encode_prompt("photo of a animal", {}))
    assert first_loss(gamma, prior) == pytest.approx(both, rel=1e-5)


def test_gamma_above_every_snr_and_gamma_zero_are_the_plain_loss():
    assert first_loss(1000.0) == pytest.approx(first_loss(0.0), rel=1e-6)
    assert first_loss(0.01) < first_loss(0.0) / 2


def test_scores_and_fisher_are_not_weighted(tmp_path):
    """With nothing trained the Fisher is that of the same adapter, whatever the weighting was."""
    states = []
    for gamma in (0.0, 0.01):
        base = ToyBase()
        settings = toy_settings(min_snr_gamma=gamma, learning_rate=0.0, token_learning_rate=0.0)
        sequence = ConceptSequence(tmp_path / str(gamma), base.fingerprint)
        states.append(teach(base, toy_concept("fox"), settings, sequence).method_state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_base_of_another_parameterization_refuses_it_before_training(tmp_path):
    base = ToyBase(parameterization="flow")
    with pytest.raises(ContinualLoraError, match=r'"min_snr_gamma" should be 0 .* is 5, and .* predicts flow\. Set it'):
        teach(base, toy_concept("fox"), toy_settings(min_snr_gamma=5.0), ConceptSequence(tmp_path, base.fingerprint))
    assert base.passes == 0
