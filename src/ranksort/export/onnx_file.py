"""Write a detector as an ONNX file: from the pixels of an image to its detections, with everything else in the metadata."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import compose, helper, numpy_helper

from .. import __version__
from ..data.coco_columns import Category
from ..evaluation.model_scores import ModelCalibration
from ..evaluation.thresholds import Wish, lowered
from ..models import Detector
from .graph import INPUTS, export_program
from .operators import translations
from .preprocessing import preprocessing_graph
from .verification import Verification, drawn_images, verify

OPSET = 20  # antialiased Resize needs 18, DeformConv 19; newer ones add nothing for detectors
_MOST_BYTES = 2**31 - 2**20  # of a file; protobuf is limited to 2 GiB


def export_onnx(
    model: Detector,
    path: str | Path,
    categories: Sequence[Category] = (),
    *,
    calibrations: Sequence[ModelCalibration] = (),
    images: Sequence[np.ndarray] | None = None,
    overwrite: bool = False,
) -> Verification | None:
    """Write a detector as an ONNX file, provided that ONNX Runtime and PyTorch agree.

    The input `image` is uint8 RGB [H, W, 3] of any size; the optional input `score_threshold`, float32 [], defaults to the model's own.
    The outputs are those of the model: `boxes`, float32 xyxy in pixels of the image [D, 4], `scores` [D], `labels`, int64 [D], and
    `masks`, bool [D, H, W]. The metadata has JSON under the key "ranksort"; see `docs/export.md`.

    Args:
        model: the detector, on a CPU.
        path: path of the file, which is written atomically.
        categories: its classes; empty: those of `model.class_names`, with ids from 1 on.
        calibrations: calibrations of its scores for the metadata; at most one per target.
        images: images for the comparison, uint8 RGB [H, W, 3] each; None: three drawn ones; empty: no comparison.
        overwrite: replace an existing file.

    Raises:
        ValueError: the file exists, the model is not on the CPU, the network is larger than 2 GB, or ONNX Runtime and PyTorch disagree.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ranksort import create_model
        >>> from ranksort.export import export_onnx
        >>> options = {"backbone": "resnet18", "channels": 64, "head_convs": 0, "min_size": 64}
        >>> model = create_model("ranksort_atss_r50_fpn_1x_coco", class_names=["cat"], **options)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     comparison = export_onnx(model, Path(folder) / "model.onnx")  # compares with PyTorch on drawn images
        >>> comparison.is_same
        True
    """
    path = Path(path)
    check_path(path, overwrite)
    if model.transform.mean.device.type != "cpu":
        raise ValueError("a model is exported from the CPU: move it there with model.cpu()")
    was_training, own_calibration = model.training, model.calibration
    model.eval()
    model.calibration = None  # the graph gives scores as the network does
    try:
        content = _with_preprocessing(_network(model), model)
        _add_metadata(content, model, categories, calibrations)
        with _whole(path, overwrite) as temporary:
            temporary.write_bytes(content.SerializeToString())
            pictures = drawn_images() if images is None else images
            found = verify(model, temporary, pictures) if pictures else None
            if found is not None and not found.is_same:
                raise ValueError(f"{path} is not written: {found}")
    finally:
        model.train(was_training)
        model.calibration = own_calibration
    return found


def _add_metadata(
    content: onnx.ModelProto, model: Detector, categories: Sequence[Category], calibrations: Sequence[ModelCalibration]
) -> None:
    categories = categories or [Category(n, name) for n, name in enumerate(model.class_names, 1)]
    helper.set_model_props(content, {"ranksort": json.dumps(describe(model, categories, calibrations))})
    if content.ByteSize() > _MOST_BYTES:
        raise ValueError(
            f"the network has {content.ByteSize() / 1e9:.1f} GB of weights, but an ONNX file is limited to 2 GB"
        )
    onnx.checker.check_model(content)


def check_path(path: Path, overwrite: bool) -> None:
    """Raise ValueError unless the path ends in .onnx, and if it exists but must not be replaced."""
    if path.suffix != ".onnx":
        raise ValueError(f"--out must name an .onnx file, got {path}")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} already exists: name another file with --out, or replace it with --overwrite")


def describe(
    model: Detector, categories: Sequence[Category], calibrations: Sequence[ModelCalibration] = ()
) -> dict[str, Any]:
    """The metadata, as plain values."""
    transform = model.transform
    mean, std = ((255 * x.flatten()).tolist() for x in (transform.mean, transform.std))
    return {
        "format": 1,
        "ranksort": __version__,
        "detector": type(model).__name__,
        "categories": [{"id": c.id, "name": c.name} for c in categories],
        "masks": model.has_masks,
        "score_threshold": float(model.score_threshold),
        "lrp_thresholds": _lrp_thresholds(model),
        "nms_threshold": float(model.nms_threshold),
        "detections_per_image": model.detections_per_image,
        "preprocessing": {
            "in_graph": True,
            "min_size": transform.min_size,
            "max_size": transform.max_size,
            "keep_ratio": transform.keep_ratio,
            "multiple_of": transform.divisor,
            "mean": mean,
            "std": std,
            "white": model.white,
        },
        "calibrations": {calibration.target: _curves(calibration, categories) for calibration in calibrations},
    }


def _lrp_thresholds(model: Detector) -> list[float] | None:
    """The threshold of each label as `predict` applies it to raw scores, None without a report."""
    return (
        None if model.thresholds is None else [lowered(value) for value in model.thresholds.reach(Wish("lrp")).values]
    )


def _curves(calibration: ModelCalibration, categories: Sequence[Category]) -> list[dict[str, list[float]]]:
    """The corners of the piecewise linear calibration of each label."""
    calibrator = calibration.calibrator
    own = {(c.id, c.name): curve for c, curve in zip(calibrator.categories, calibrator.curves, strict=True)}
    curves = [own.get((c.id, c.name)) or calibrator.all_classes for c in categories]
    return [{"scores": curve.scores.tolist(), "values": curve.values.tolist()} for curve in curves]


def _network(model: Detector) -> onnx.ModelProto:
    with _quiet():
        program = export_program(model)
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, custom_translation_table=translations(), verbose=False
        )
    assert exported is not None
    return exported.model_proto


def _with_preprocessing(network: onnx.ModelProto, model: Detector) -> onnx.ModelProto:
    """The network behind its preprocessing."""
    before = preprocessing_graph(model.transform, OPSET)
    before.ir_version = network.ir_version
    before = compose.add_prefix(before, "image/", rename_inputs=False)
    needed = [value.name for value in network.graph.input if value.name in INPUTS]
    merged = compose.merge_models(
        before,
        network,
        io_map=[(f"image/{name}", name) for name in needed],
        outputs=[output.name for output in network.graph.output],
        name="ranksort",
        producer_name="ranksort",
        producer_version=__version__,
    )
    threshold = numpy_helper.from_array(np.array(model.score_threshold, np.float32), "score_threshold")
    merged.graph.initializer.append(threshold)  # an initializer with the name of an input is its default
    names = ["boxes", "scores", "labels", "masks"][: len(merged.graph.output)]
    _rename_outputs(merged.graph, names)
    return merged


def _rename_outputs(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    shapes: dict[str, list[str | int | None]] = {
        "boxes": ["detections", 4],
        "masks": ["detections", "image_height", "image_width"],
    }
    for output, name in zip(graph.output, names, strict=True):
        graph.node.append(helper.make_node("Identity", [output.name], [name]))
        shape = shapes.get(name, ["detections"])
        output.CopyFrom(helper.make_tensor_value_info(name, output.type.tensor_type.elem_type, shape))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings, which are about its own code and about intended constants."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _whole(path: Path, overwrite: bool) -> Iterator[Path]:
    """A file beside `path` that replaces it at the end, unless something fails, or another process has written one in the meantime."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.onnx")
    try:
        yield temporary
        check_path(path, overwrite)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
