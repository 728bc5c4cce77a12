"""Detections in a user's own images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track

from .checkpoints import Checkpoint, read_checkpoint
from .data.images import read_image, to_rgb
from .evaluation.results import to_coco_results
from .visualize import draw_detections


def predict_images(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    score_threshold: float | Literal["lrp"],
    device: str,
) -> list[str]:
    """Writes pictures with detections, and all detections as JSON.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        images: image files.
        out: folder; gets one picture an image, numbered in their order, and `detections.json`: a list of `file`, `class`,
            `score` in 0..1, `bbox` [x, y, width, height] in pixels, and `segmentation` as RLE where the model predicts masks.
        score_threshold: least score of a detection; "lrp": of each class that at which it reaches its oLRP in the run's report.
        device: such as cpu or cuda:1; "": what there is.

    Returns:
        One sentence for each image which could not be read.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no report of its run.
        ValueError: the checkpoint is not one of this package, the report has no thresholds for it, or a number or the device
            cannot be used.
    """
    if score_threshold != "lrp" and not 0 <= score_threshold <= 1:
        raise ValueError(f'--score-threshold must be within 0..1 or "lrp", got {score_threshold}')
    trained = read_checkpoint(checkpoint)
    names = [category.name for category in trained.categories]
    least = trained.recipe.model.score_threshold  # the model keeps what it kept when the thresholds were found
    if score_threshold == "lrp":
        thresholds = torch.tensor(_optimal_thresholds(checkpoint, trained))
    else:
        thresholds, least = torch.full((len(names),), score_threshold), min(least, score_threshold)
    place = device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {place} cannot be used: {str(error).splitlines()[0]}") from None
    model = trained.build(place, score_threshold=least)
    out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    failures = []
    for number, path in enumerate(track(images, description="detecting")):
        try:
            picture = to_rgb(ImageOps.exif_transpose(read_image(path)))
        except (ValueError, FileNotFoundError) as error:
            failures.append(str(error))
            continue
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        with torch.inference_mode():
            detections = model([image.to(place)])[0]
        kept = detections["scores"] >= thresholds.to(place)[detections["labels"]]
        detections = {key: value[kept].cpu() for key, value in detections.items()}
        for result in to_coco_results([detections], [number], range(len(names))):
            del result["image_id"]
            found.append({"file": str(path), "class": names[result.pop("category_id")], **result})
        drawn = draw_detections(image, detections, names).permute(1, 2, 0).numpy()
        Image.fromarray(drawn).save(out / f"{number:05d}_{path.stem}.jpg")
    (out / "detections.json").write_text(json.dumps(found, indent=1) + "\n")
    return failures


def _optimal_thresholds(checkpoint: Path, trained: Checkpoint) -> list[float]:
    """The LRP-optimal score threshold of each label; classes without one take the mean of the others.

    They come from the report of the run in whose folder the checkpoint lies, that of the masks where there is one.
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
    known = [of_class[category.id] for category in trained.categories if category.id in of_class]
    if not known:
        raise ValueError(f"{found[0]} has no threshold of any class of {checkpoint}: set a number from 0 to 1")
    return [of_class.get(category.id, sum(known) / len(known)) for category in trained.categories]
