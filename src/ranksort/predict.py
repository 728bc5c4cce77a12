"""Detections in a user's own images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from rich.progress import track

from .checkpoints import load_model
from .data.coco import read_image, to_rgb
from .evaluation.results import encode_masks
from .visualize import draw_detections, save_image


def predict_images(
    checkpoint: Path, images: Sequence[Path], out: Path, score_threshold: float = 0.3, device: str = ""
) -> list[str]:
    """Writes pictures with detections, and all detections as JSON.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        images: image files.
        out: folder; gets one picture an image, numbered in their order, and `detections.json`: a list of `file`, `class`,
            `score` in 0..1, `bbox` [x, y, width, height] in pixels, and `segmentation` as RLE where the model predicts masks.
        score_threshold: least score of a detection.
        device: by default what there is.

    Returns:
        One sentence for each image which could not be read.
    """
    model = load_model(checkpoint, device or best_device())
    names: list[str] = model.class_names  # type: ignore[assignment]
    place = next(model.parameters()).device
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
        kept = detections["scores"] >= score_threshold
        detections = {key: value[kept].cpu() for key, value in detections.items()}
        masks = encode_masks(detections["masks"]) if "masks" in detections else None
        columns = (detections[key].tolist() for key in ("boxes", "scores", "labels"))
        for i, ((x1, y1, x2, y2), score, label) in enumerate(zip(*columns, strict=True)):
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"file": str(path), "class": names[label], "score": score, "bbox": box})
            if masks is not None:
                found[-1]["segmentation"] = masks[i]
        save_image(draw_detections(image, detections, names, score_threshold), out / f"{number:05d}_{path.stem}.jpg")
    (out / "detections.json").write_text(json.dumps(found, indent=1) + "\n")
    return failures


def best_device() -> str:
    """The fastest device of this machine."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
