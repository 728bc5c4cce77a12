"""Training and evaluation. Only this folder imports PyTorch Lightning.

An epoch is a function of the seed and the epoch's number: the sampler draws a seed for each image, and the module one for each batch. A run
that is interrupted anywhere and resumed therefore continues bit for bit as if nothing had happened.
"""

from .run import test, train

__all__ = ["test", "train"]
