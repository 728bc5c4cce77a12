"""The faults that a COCO file can have, and the consequence of each for every use of the file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import numpy as np

Use = Literal["boxes", "masks", "evaluation", "mask_evaluation"]
USES: dict[Use, str] = {
    "boxes": "training on boxes",
    "masks": "training on masks",
    "evaluation": "evaluation of boxes",
    "mask_evaluation": "evaluation of masks",
}
Consequence = Literal["refused", "left out", "kept"]
"""The file is refused; the object, image or mask is left out; or it is used as it is, or as the message says."""


class Consequences(NamedTuple):
    """The consequences of a fault when the file is used for training or evaluation, of boxes or masks."""

    boxes: Consequence
    masks: Consequence
    evaluation: Consequence
    mask_evaluation: Consequence


def _everywhere(consequence: Consequence) -> Consequences:
    return Consequences(*[consequence] * 4)


_TRAINING_ONLY = Consequences("refused", "refused", "kept", "kept")
_DROPPED = Consequences("left out", "left out", "kept", "kept")

CONSEQUENCES: dict[str, Consequences] = {
    "not JSON": _everywhere("refused"),
    "missing section": _everywhere("refused"),
    "malformed category": _everywhere("refused"),
    "malformed image": _everywhere("refused"),
    "malformed annotation": _everywhere("refused"),
    "duplicate category id": _everywhere("refused"),
    "duplicate image id": _everywhere("refused"),
    "bad list of categories": _everywhere("refused"),
    "unknown image": _everywhere("refused"),
    "unknown category": _everywhere("refused"),
    "bad category name": _TRAINING_ONLY,
    "bad file name": _TRAINING_ONLY,
    "bad image size": Consequences("refused", "refused", "kept", "refused"),
    "bad box": Consequences("refused", "refused", "refused", "kept"),
    "bad segmentation": Consequences("kept", "refused", "kept", "refused"),
    "no segmentation": Consequences("kept", "refused", "kept", "refused"),
    "bad segmentation of a crowd": Consequences("kept", "kept", "kept", "refused"),
    "no object to train on": _TRAINING_ONLY,
    "no mask to train on": Consequences("kept", "refused", "kept", "kept"),
    "nothing to evaluate": Consequences("kept", "kept", "refused", "refused"),
    "missing image": _TRAINING_ONLY,
    "unreadable image": _TRAINING_ONLY,
    "wrong image size": _TRAINING_ONLY,
    "unclear white": _TRAINING_ONLY,
    "small image": _DROPPED,
    "box without area": _DROPPED,
    "box outside the image": _DROPPED,
    "small box": _DROPPED,
    "mask without a pixel": Consequences("kept", "left out", "kept", "kept"),
    "box partly outside the image": _everywhere("kept"),
    "boxes extend beyond their images": _everywhere("kept"),
    "no area given": _everywhere("kept"),
    "wrong area": _everywhere("kept"),
    "duplicate annotation id": _everywhere("kept"),
    "same annotation twice": _everywhere("kept"),
    "same file in two images": _everywhere("kept"),
    "same name in two categories": _everywhere("kept"),
    "category without objects": _everywhere("kept"),
    "group as a category": _DROPPED,
    "mostly crowd": _everywhere("kept"),
    "found in another folder": _everywhere("kept"),
    "rotated by EXIF": _everywhere("kept"),
    "nearly black": _everywhere("kept"),
}
"""Every kind of fault."""

VALIDATION = (
    "bad file name",
    "bad image size",
    "bad box",
    "missing image",
    "unreadable image",
    "wrong image size",
    "unclear white",
)
"""Faults for which `test` and the validation of a run also refuse a file: unlike `evaluate`, they open the images."""


class Lines(Sequence[str]):
    """Sentences about some rows, built when read: there can be as many as there are annotations."""

    def __init__(self, rows: "Sequence[int] | np.ndarray", describe: Callable[[int], str]) -> None:
        self.rows, self.describe = rows, describe

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, n: int) -> str: ...
    @overload
    def __getitem__(self, n: slice) -> list[str]: ...
    def __getitem__(self, n: int | slice) -> str | list[str]:
        if isinstance(n, slice):
            return [self.describe(int(row)) for row in self.rows[n]]
        return self.describe(int(self.rows[n]))


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and a line for each case of it, such as "annotation 7 names the unknown image 3"."""

    kind: str
    lines: Sequence[str]

    @property
    def consequences(self) -> Consequences:
        return CONSEQUENCES[self.kind]

    def consequence(self, use: Use) -> Consequence:
        """The consequence for one use of the file."""
        return getattr(self.consequences, use)
