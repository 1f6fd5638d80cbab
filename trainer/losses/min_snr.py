"""Min-SNR weighting: the easy, nearly clean times count less, so that they do not outvote the others.

Source: Hang et al., arXiv 2303.09556, equation 6 and section 3.4.
"""

import torch
from torch import Tensor

from ..denoiser import Conditioning, Denoiser
from ..errors import ContinualLoraError
from .denoising import NoisedBatch


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, parameterization: str) -> Tensor:
    """min(SNR, gamma) / SNR for eps, min(SNR, gamma) / (SNR + 1) for v, with SNR = a / (1 - a).

    Both are min(SNR, gamma) times the squared error of x_0, said in the unit of the prediction.

    Args:
        alphas_cumprod: a, the share of signal variance, [B] in 0..1.
        gamma: > 0.
        parameterization: "eps" or "v".

    Returns:
        [B] in 0..1; for v at most gamma / (gamma + 1).
    """
    inverse = (1 - alphas_cumprod) / alphas_cumprod  # 1 / SNR; infinite at pure noise
    if parameterization == "eps":
        return (gamma * inverse).clamp(max=1.0)
    # SNR + 1 = 1 / (1 - a), so SNR / (SNR + 1) = a.
    return torch.minimum(alphas_cumprod, gamma * (1 - alphas_cumprod))


def mean_error(batch: NoisedBatch, conditioning: Conditioning, gamma: float) -> Tensor:
    """The training loss of a batch, a scalar: its mean denoising error, with gamma > 0 under min-SNR weights."""
    error = batch.error(conditioning)
    if gamma == 0:
        return error.mean()
    signal, _ = batch.denoiser.scales(batch.t)
    return (min_snr_weights(signal.square(), gamma, batch.denoiser.parameterization) * error).mean()


def check_min_snr(gamma: float, denoiser: Denoiser) -> None:
    """Whether the base has such weights.

    Raises:
        ContinualLoraError: it predicts neither the noise nor v.
    """
    if gamma and denoiser.parameterization not in {"eps", "v"}:
        raise ContinualLoraError(
            '"min_snr_gamma" should be 0 for a base that predicts neither the noise (eps) nor v.',
            f"It is {gamma:g}, and this base predicts {denoiser.parameterization}.",
            "Set it to 0.",
        )
