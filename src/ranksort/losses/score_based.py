"""Losses that treat each score independently, for comparison with RS Loss: focal, quality focal and varifocal loss.

All three are binary cross-entropy, weighted so that the many easy negatives do not dominate the few positives. s is a logit, p =
sigmoid(s) its probability and y its target, as for the ranking losses: above 0 a positive of this quality, 0 a negative, below 0 ignored.

Each is the sum over all examples, divided by the number of positives.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

_SURELY_NOT = -1e4  # a logit of probability 0


def focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss: Lin, Goyal, Girshick, He, Dollár, ICCV 2017 (arXiv 1708.02002), equation 5.

        FL = -α_t (1 - p_t)^γ log(p_t),  p_t = p and α_t = α for positives, p_t = 1 - p and α_t = 1 - α for negatives

    Args:
        logits: s, floating point, any shape.
        targets: y, same shape; above 0: a positive, the value does not matter.
        alpha: weight of positives, in 0..1.
        gamma: focusing parameter: how strongly well-classified examples are down-weighted, >= 0.

    Returns:
        The sum over all examples that are not ignored, divided by the number of positives (or by 1 without positives); a scalar >= 0,
        float64 for float64 logits, else float32. The gradient of an ignored logit is 0.

    Raises:
        ValueError: the shapes differ.

    Examples:
        >>> import torch
        >>> from ranksort.losses import focal_loss
        >>> focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0])).item()  # (0.25 + 0.75) * 0.5**2 * log(2)
        0.1733
    """
    s, y = _prepare(logits, targets)
    y = (y > 0).to(s)
    alpha_t = (2 * alpha - 1) * y + (1 - alpha)
    focus = _power((y - s.sigmoid()).abs(), gamma)  # |y - p| is 1 - p_t
    return _per_positive(alpha_t * focus * _cross_entropy(s, y), y)


def quality_focal_loss(logits: Tensor, targets: Tensor, *, beta: float = 2.0) -> Tensor:
    """Quality focal loss: Li, Wang, Wu et al., NeurIPS 2020 (arXiv 2006.04388), equation 3.

        QFL = -|y - p|^β ((1 - y) log(1 - p) + y log(p))

    Args:
        logits: s, floating point, any shape.
        targets: y, same shape, up to 1: the IoU of a positive.
        beta: how strongly well-classified examples are down-weighted, >= 0.

    Returns:
        As for `focal_loss`.

    Raises:
        ValueError: as for `focal_loss`.

    Examples:
        >>> import torch
        >>> from ranksort.losses import quality_focal_loss
        >>> logits = torch.zeros(1)  # a probability of 0.5
        >>> quality_focal_loss(logits, torch.tensor([0.5])).item(), quality_focal_loss(logits, torch.tensor([0.9])).item()
        (0.0, 0.1109)
    """
    s, y = _prepare(logits, targets)
    return _per_positive(_power((y - s.sigmoid()).abs(), beta) * _cross_entropy(s, y), y)


def varifocal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Varifocal loss: Zhang, Wang, Dayoub, Sünderhauf, CVPR 2021 (arXiv 2008.13367), equation 2.

        VFL = -y (y log(p) + (1 - y) log(1 - p)) for y > 0,  -α p^γ log(1 - p) for y = 0

    Args:
        logits: s, floating point, any shape.
        targets: y, same shape, up to 1: the IoU of a positive, which is also its weight.
        alpha: weight of negatives, >= 0.
        gamma: how strongly well-classified negatives are down-weighted, >= 0.

    Returns:
        As for `focal_loss`.

    Raises:
        ValueError: as for `focal_loss`.

    Examples:
        >>> import torch
        >>> from ranksort.losses import varifocal_loss
        >>> logits = torch.zeros(1)
        >>> varifocal_loss(logits, torch.tensor([0.4])).item(), varifocal_loss(logits, torch.tensor([0.8])).item()  # IoU as weight
        (0.2773, 0.5545)
    """
    s, y = _prepare(logits, targets)
    weight = torch.where(y > 0, y, alpha * _power(s.sigmoid(), gamma))
    return _per_positive(weight * _cross_entropy(s, y), y)


def _prepare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """s and y in float32 or better. Ignored examples become certain negatives, without loss and gradient."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits and targets must have the same shape, got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).masked_fill(targets < 0, _SURELY_NOT), targets.to(dtype).clamp(min=0)


def _power(x: Tensor, exponent: float) -> Tensor:
    """`x ** exponent` for x in [0, 1]. At 0, an exponent below 1 has an infinite derivative, which would make the gradient NaN."""
    return (x.clamp(min=torch.finfo(x.dtype).tiny) if exponent < 1 else x) ** exponent


def _cross_entropy(s: Tensor, y: Tensor) -> Tensor:
    """-(y log(p) + (1 - y) log(1 - p))"""
    return binary_cross_entropy_with_logits(s, y, reduction="none")


def _per_positive(losses: Tensor, y: Tensor) -> Tensor:
    return losses.sum() / (y > 0).sum().clamp(min=1)
