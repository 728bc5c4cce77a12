"""One-dimensional mixtures of two Gaussians, one for each object of a batch, fitted all at once.

PAA (Kim and Lee, ECCV 2020, section 3.1) models the losses of an object's candidates as samples from two Gaussians, one for good and
one for bad candidates, and fits them by expectation maximisation.
"""

import torch
from torch import Tensor

_VARIANCE_FLOOR = 1e-5  # added to every variance, for equal losses
_TOLERANCE = 1e-3  # change of the mean log-likelihood below which a fit has converged
_STEPS = 100


@torch.inference_mode()  # many small steps: without it, each operation takes a sixth longer
def low_component(values: Tensor) -> tuple[Tensor, Tensor]:
    """Fit two Gaussians to each row, and decide for each value whether it belongs to the lower one.

    They start at the minimum and maximum of their row with weights 1/2 and variances 1. A row has converged when its mean
    log-likelihood changes by less than 1e-3, or after 100 steps.

    Args:
        values: [G, K], float64 if the device supports it; infinite ones do not count.

    Returns:
        belongs: bool [G, K], whether a value is at least as probable under the component that started at the minimum.
        likelihood: [G, K], log-likelihood of the value under both, up to a constant of its row.
    """
    valid = values < torch.inf
    values = torch.where(valid, values - values.amin(1, keepdim=True), 0)
    x, counts, rows = values, valid.to(values.dtype), torch.arange(len(values), device=values.device)
    moments = torch.stack([counts, x, x * x])[:, None]
    tolerance = _TOLERANCE * counts.sum(1)
    bound = torch.full_like(tolerance, -torch.inf)
    # Number of values, mean and variance of both components, [2, G, 1] each.
    size = (counts.sum(1, keepdim=True) / 2).expand(2, -1, -1)
    mean = torch.stack([torch.zeros_like(size[0]), x.amax(1, keepdim=True)])
    variance = torch.ones_like(size)

    fitted = torch.empty(3, *size.shape, dtype=x.dtype, device=x.device)
    for _ in range(_STEPS):
        joint, likelihood = _log_probabilities(x, size, mean, variance)
        size, total, squares = ((joint - likelihood).exp() * moments).sum(-1, keepdim=True)
        size = size + 10 * torch.finfo(size.dtype).eps
        mean = total / size
        variance = squares / size - mean * mean + _VARIANCE_FLOOR

        previous, bound = bound, (likelihood * counts).sum(1)
        changed = (bound - previous).abs_() >= tolerance
        if not changed.all():  # converged rows are removed
            fitted[:, :, rows] = torch.stack([size, mean, variance])
            x, counts, tolerance, bound, rows = (t[changed] for t in (x, counts, tolerance, bound, rows))
            size, mean, variance, moments = (t[..., changed, :] for t in (size, mean, variance, moments))
            if len(rows) == 0:
                break
    fitted[:, :, rows] = torch.stack([size, mean, variance])
    joint, likelihood = _log_probabilities(values, *fitted)
    return valid & (joint[0] >= joint[1]), likelihood


def _log_probabilities(values: Tensor, size: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Log of size times density of each component [2, G, K], and of their sum [G, K], less the constant log √2π."""
    distance = values - mean
    joint = torch.addcdiv((size / variance.sqrt()).log(), distance * distance, variance, value=-0.5)
    return joint, torch.logaddexp(joint[0], joint[1])
