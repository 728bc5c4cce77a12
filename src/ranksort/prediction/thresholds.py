"""The score from which on a detection is shown."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..data.coco_columns import Category

DEFAULT = 0.3  # where no report says better


def read_lrp_thresholds(checkpoint: Path, categories: Sequence[Category]) -> tuple[float, ...]:
    """The LRP-optimal score threshold of each label; classes without one take the mean of the others.

    They come from the report of the run in whose folder the checkpoint lies, that of the masks where there is one.

    Raises:
        FileNotFoundError: there is no report.
        ValueError: it is damaged, or has no threshold of any of the categories.
    """
    folders = [folder / "report" for folder in (checkpoint, *checkpoint.absolute().parents[:2])]
    found = [file for f in folders for file in (f / "masks/report.json", f / "report.json") if file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"there is no report of {checkpoint}, which --score-threshold lrp needs: name a run folder with a report, "
            "or a number from 0 to 1"
        )
    try:
        rows = json.loads(found[0].read_bytes())["per_class"]
        of_class = {r["category_id"]: float(r["oLRP_threshold"]) for r in rows if r["oLRP_threshold"] is not None}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{found[0]} is no report of ranksort, or a damaged one: evaluate the run again") from None
    known = [of_class[category.id] for category in categories if category.id in of_class]
    if not known:
        raise ValueError(f"{found[0]} has no threshold of any class of {checkpoint}: set a number from 0 to 1")
    return tuple(of_class.get(category.id, sum(known) / len(known)) for category in categories)
