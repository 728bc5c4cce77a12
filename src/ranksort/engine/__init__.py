"""Training and evaluation. This folder alone knows PyTorch Lightning.

An epoch is a function of the seed and its number: the sampler draws a seed for each image, and the module one for each batch. So a run that
was interrupted anywhere and resumed goes on bit for bit as if nothing had happened.
"""

from .run import test, train

__all__ = ["test", "train"]
