"""The error for losses whose input or output is NaN or infinite."""


class NotFinite(ValueError):
    """Numbers that are not finite, as from a model that has diverged. A training loop may skip the batch and continue."""
