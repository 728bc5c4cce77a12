"""Detections in a user's own images."""

import contextlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track

from .checkpoints import Checkpoint, read_checkpoint
from .data.images import IMAGE_SUFFIXES, read_image, to_rgb
from .evaluation.results import to_coco_results
from .json_list import JsonList
from .visualize import draw_detections

_LONGEST_JPEG = 65500  # pixels of a side


def find_images(paths: Sequence[Path], out: Path, recursive: bool = False) -> tuple[list[Path], str]:
    """List image files, and the image files of folders in the order of their names.

    Args:
        paths: files, which are taken whatever they are called, and folders.
        out: folder of results; what lies in it is left out where it is below one of the folders.
        recursive: look into the folders of folders, too; links to folders are not followed.

    Returns:
        The images, and what of the folders was passed over, in words; "" if nothing was.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        for folder, folders, files in os.walk(path):
            inside = [name for name in sorted(folders) if (Path(folder) / name).resolve() != out.resolve()]
            folders[:] = inside if recursive else []
            if not recursive:
                others["folder(s), which --recursive looks into"] += len(inside)
            for file in (Path(folder) / name for name in sorted(files)):
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):  # macOS leaves ._name.jpg
                    images.append(file)
                else:
                    others["file(s) that are hidden, or no images by their names"] += 1
    return images, ", ".join(f"{count} {what}" for what, count in others.items() if count)


def predict_images(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    score_threshold: float | Literal["lrp"],
    device: str,
    detector: str = "",
) -> list[str]:
    """Write pictures with detections, and all detections as JSON, image by image: what is done stays, whatever happens to the rest.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        images: image files.
        out: folder; gets one picture an image, numbered in their order, as JPEG, or as PNG where a side is too long for that, and
            `detections.json`: a list of `file`, `class`,
            `score` in 0..1, `bbox` [x, y, width, height] in pixels, and `segmentation` as RLE where the model predicts masks.
        score_threshold: least score of a detection; "lrp": of each class that at which it reaches its oLRP in the run's report.
        device: such as cpu or cuda:1; "": what there is.
        detector: "path/to/file.py:Class" of one's own that the checkpoint was trained with, which is run; "": it has one of ours.

    Returns:
        One sentence for each image which could not be read or processed.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no report of its run.
        ValueError: the checkpoint is not one of this package, the report has no thresholds for it, or a number or the device
            cannot be used.
        OSError: the results cannot be written, as on a full disk; the message says what is kept.
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
    model = trained.build(place, score_threshold=least, **({"detector": detector} if detector else {}))
    out.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    results = JsonList(out / "detections.json")
    file, done = results.path, 0
    try:
        for done, path in enumerate(track(images, description="detecting")):
            try:
                image = _read(path)
                with torch.inference_mode():
                    detections = model([image.to(place)])[0]
                kept = detections["scores"] >= thresholds.to(place)[detections["labels"]]
                detections = {key: value[kept].cpu() for key, value in detections.items()}
                items = _items(path, detections, names)
                suffix, picture = _encode(draw_detections(image, detections, names))
            except Exception as error:  # be it out of memory: the next image may be smaller
                failures.append(_failure(path, error))
                continue
            file = results.path
            results.extend(items)
            file = out / f"{done:05d}_{_short(path.stem)}{suffix}"
            _write(file, picture)
    except OSError as error:
        raise OSError(
            f"{file} cannot be written ({error.strerror or error}); {results.path} has the detections of the first "
            f"{done} of {len(images)} images"
        ) from None
    except KeyboardInterrupt:
        print(f"{results.path} has the detections of the first {done} of {len(images)} images", file=sys.stderr)
        raise
    finally:
        results.close()
    return failures


def _read(path: Path) -> torch.Tensor:
    """The image as a person sees it: uint8 RGB, [3, H, W]."""
    picture = to_rgb(ImageOps.exif_transpose(read_image(path)))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _items(path: Path, detections: dict[str, torch.Tensor], names: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of `detections.json` for an image."""
    results = to_coco_results([detections], [0], range(len(names)))
    about = ({"file": str(path), "class": names[result.pop("category_id")]} for result in results)
    return [
        item | {key: value for key, value in result.items() if key != "image_id"}
        for item, result in zip(about, results, strict=True)
    ]


def _failure(path: Path, error: Exception) -> str:
    """Why an image has no detections, in one sentence."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason if str(path) in reason else f"The image {path} cannot be processed ({reason})."


def _encode(image: torch.Tensor) -> tuple[str, bytes]:
    """An image, uint8 [3, H, W], as the content of a file, after the file's suffix."""
    suffix, form = (".jpg", "JPEG") if max(image.shape) <= _LONGEST_JPEG else (".png", "PNG")
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, form)
    return suffix, content.getvalue()


def _write(file: Path, content: bytes) -> None:
    """Write a file, or none at all."""
    try:
        file.write_bytes(content)
    except BaseException:
        with contextlib.suppress(OSError):
            file.unlink()
        raise


def _short(stem: str) -> str:
    """A file's stem, of which so much that number and suffix fit into the 255 bytes of a name."""
    return os.fsencode(stem)[:200].decode(errors="ignore")


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
