"""Mixtures of two Gaussians on a line, one for each object of a batch, fitted all at once.

PAA (Kim and Lee, ECCV 2020, section 3.1) takes the losses of an object's candidates for draws from two Gaussians, one of the good
candidates and one of the bad, and fits the two by expectation maximisation.
"""

import torch
from torch import Tensor

_VARIANCE_FLOOR = 1e-5  # added to every variance, so that equal losses do no harm
_TOLERANCE = 1e-3  # change of the mean log-likelihood below which a fit is done
_STEPS = 100


def low_component(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Fits two Gaussians to each row, and asks of each value whether it belongs to the lower one.

    They start at the least and the greatest value of their row with weights 1/2 and variances 1. A row is fitted when its mean
    log-likelihood changes by less than 1e-3, or after 100 steps.

    Args:
        values: [G, K], in float64 where the device has it.
        valid: bool [G, K], the values which count.

    Returns:
        belongs: bool [G, K], whether a value is at least as probable under the component which began at the least value.
        likelihood: [G, K], log-likelihood of the value under both, up to a constant.
    """
    low = values.masked_fill(~valid, torch.inf).amin(1)
    high = values.masked_fill(~valid, -torch.inf).amax(1)
    values = torch.where(valid, values, low[:, None])
    half, one = torch.full_like(low, 0.5), torch.ones_like(low)
    fit = torch.stack([torch.stack([half, half]), torch.stack([low, high]), torch.stack([one, one])])  # [3, 2, G]

    previous = torch.full_like(low, -torch.inf)
    unfinished = torch.arange(len(values), device=values.device)
    for _ in range(_STEPS):
        x, counts = values[unfinished], valid[unfinished]
        joint, likelihood = _log_probabilities(x, fit[..., unfinished])
        fit[..., unfinished] = _maximise(x, (joint - likelihood).exp() * counts)
        bound = (likelihood * counts).sum(1) / counts.sum(1)
        changed = (bound - previous[unfinished]).abs() >= _TOLERANCE
        previous[unfinished] = bound
        unfinished = unfinished[changed]
        if len(unfinished) == 0:
            break
    joint, likelihood = _log_probabilities(values, fit)
    return valid & (joint[0] >= joint[1]), likelihood


def _log_probabilities(values: Tensor, fit: Tensor) -> tuple[Tensor, Tensor]:
    """Log of weight times density of each component [2, G, K], and of their sum [G, K], less the constant log √2π."""
    weight, mean, variance = fit[..., None]
    joint = weight.log() - variance.log() / 2 - (values - mean).square() / (2 * variance)
    return joint, torch.logaddexp(joint[0], joint[1])


def _maximise(values: Tensor, share: Tensor) -> Tensor:
    """Weights, means and variances [3, 2, G] of the components which have `share` [2, G, K] of the values [G, K]."""
    size = share.sum(-1) + 10 * torch.finfo(share.dtype).eps
    mean = (share * values).sum(-1) / size
    variance = (share * (values - mean[..., None]).square()).sum(-1) / size + _VARIANCE_FLOOR
    return torch.stack([size / size.sum(0), mean, variance])
