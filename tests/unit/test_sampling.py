"""The sampler on a model that knows the answer."""

import pytest
import torch

from trainer.denoiser import Conditioning
from trainer.losses.denoising import add_noise, prediction_target
from trainer.sampling import predicted_x_0_and_noise, sample

X_0, NOISE = torch.tensor([[[[0.5, -2.0]]]]), torch.tensor([[[[1.5, 1.0]]]])
PROMPT = Conditioning(torch.zeros(1, 1, 1))


class Oracle:
    """Its image is X_0, whatever it is given; on the way there x_t stays the mix of X_0 and one noise."""

    def __init__(self, parameterization):
        self.parameterization, self.noise, self.seen = parameterization, None, []

    def scales(self, t):
        share = (t + 1) / 1000  # the last timestep of a flow is noise alone
        return (1 - share, share) if self.parameterization == "flow" else ((1 - share).sqrt(), share.sqrt())

    def predict(self, x_t, t, conditioning):
        self.seen.append(x_t[:1])
        signal, spread = (scale[:1, None, None, None] for scale in self.scales(t))
        self.noise = (x_t[:1] - signal * X_0) / spread
        return prediction_target(X_0, self.noise, self.scales(t[:1]), self.parameterization).expand_as(x_t)


@pytest.mark.parametrize("parameterization", ["v", "flow"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_it_arrives_at_the_image_along_the_line(parameterization, steps):
    oracle = Oracle(parameterization)
    torch.testing.assert_close(sample(oracle, PROMPT, PROMPT, NOISE, steps), X_0, atol=1e-5, rtol=1e-5)
    for t, x_t in zip(torch.linspace(999, 0, steps).round().long(), oracle.seen, strict=True):
        torch.testing.assert_close(x_t, add_noise(X_0, NOISE, oracle.scales(t[None])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parameterization", ["eps", "v", "flow"])
def test_a_prediction_says_what_was_mixed(parameterization):
    scales = (
        (torch.tensor(0.7), torch.tensor(0.3)) if parameterization == "flow" else (torch.tensor(0.8), torch.tensor(0.6))
    )
    x_t = scales[0] * X_0 + scales[1] * NOISE
    target = prediction_target(X_0, NOISE, (scales[0][None], scales[1][None]), parameterization)
    for found, expected in zip(
        predicted_x_0_and_noise(target, x_t, scales, parameterization), (X_0, NOISE), strict=True
    ):
        torch.testing.assert_close(found, expected)
