"""How the losses say that what they are given, or what comes out, is NaN or infinite."""


class NotFinite(ValueError):
    """Numbers that are not finite, as of a model that has diverged. A training loop may leave the batch out and continue."""
