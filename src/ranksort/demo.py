"""A web page that shows a model's detections: `ranksort demo`.

The model runs once per image. Changes of threshold and classes only select among its detections and redraw them.
"""

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .data.images import IMAGE_SUFFIXES
from .models import Detector
from .prediction import Prediction, Predictor
from .words import counted

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
import gradio as gr

_LEAST = 0.01  # lowest score that can be shown
_CSS = """
.ranksort-scale {position: relative; height: 2.4em; margin: 0 33px 0 32px; font-size: .85em}
.ranksort-scale {border-top: 2px solid var(--border-color-primary)}
.ranksort-scale i {position: absolute; top: -7px; width: 2px; height: 12px; background: var(--color-accent)}
.ranksort-scale span {position: absolute; top: 8px; transform: translateX(-50%); white-space: nowrap}
"""


@dataclass
class Found:
    """The detections in the image on the page."""

    prediction: Prediction  # all detections from `_LEAST` on
    name: str  # of the file
    thresholds: tuple[float, ...] | None  # LRP-optimal, of each label

    def kept(self, threshold: float, is_lrp: bool, classes: Sequence[str]) -> Prediction:
        """The detections of some classes above a threshold, or above the LRP-optimal threshold of their class."""
        labels = self.prediction.labels
        scores = self.prediction.scores
        least = np.array(self.thresholds)[labels] if is_lrp and self.thresholds is not None else np.array(threshold)
        chosen = np.array([name in classes for name in self.prediction.names], dtype=bool)
        return self.prediction.select(chosen & (scores >= least.astype(scores.dtype)))

    def as_json(self, kept: Prediction, threshold: float, is_lrp: bool) -> str:
        """These detections as JSON, with the image's name and size: boxes x1, y1, x2, y2 in pixels, masks as COCO's RLE."""
        height, width = kept.size
        rows = zip(kept.names, kept.scores.tolist(), kept.boxes.tolist(), strict=True)
        detections: list[dict[str, Any]] = [{"class": name, "score": score, "box": box} for name, score, box in rows]
        for detection, rle in zip(detections, kept.rles or [], strict=kept.rles is not None):
            detection["mask"] = rle
        about = {"image": self.name, "width": width, "height": height, "threshold": "lrp" if is_lrp else threshold}
        return json.dumps(about | {"detections": detections}, ensure_ascii=False, indent=1)


def build_page(models: Mapping[str, Detector], title: str, examples: Sequence[Path] = ()) -> gr.Blocks:
    """Build the page.

    Args:
        models: the same model with different kinds of scores, such as `raw` and `calibrated`; the first is shown first.
        title: for example the checkpoint's name.
        examples: image files to choose from.
    """
    predictors = {kind: Predictor(model, _LEAST) for kind, model in models.items()}
    lrp = {kind: _lrp_thresholds(model) for kind, model in models.items()}
    downloads = tempfile.TemporaryDirectory(prefix="ranksort-demo-")

    def detect(file: str | None, kind: str) -> tuple[Any, ...]:
        if not file:
            return None, gr.update(choices=[], value=[])
        try:
            _, found = next(predictors[kind].files([Path(file)]))
            if isinstance(found, Exception):
                raise found
        except (ValueError, OSError) as error:
            raise gr.Error(_message(error, file), duration=20, print_exception=False) from None
        names = [name for name in found.class_names if name in set(found.names)]
        return Found(found, Path(file).name, lrp[kind]), gr.update(choices=names, value=names)

    def show(
        found: Found | None, threshold: float, is_lrp: bool, classes: list[str], request: gr.Request
    ) -> tuple[Any, ...]:
        if found is None:
            return None, "", gr.update(value=None, interactive=False)
        is_lrp = is_lrp and found.thresholds is not None
        kept = found.kept(threshold, is_lrp, classes)
        file = Path(downloads.name) / f"{request.session_hash}" / f"{Path(found.name).stem}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(found.as_json(kept, threshold, is_lrp), encoding="utf-8")
        numbers = {name: kept.names.count(name) for name in dict.fromkeys(kept.names)}
        said = ", ".join(f"{count} {name}" for name, count in numbers.items()) or "nothing above this score"
        return (
            kept.plot(),
            f"**{counted(len(kept), 'detection')}**: {_plain(said)}",
            gr.update(value=str(file), interactive=True),
        )

    first = next(iter(models))
    with gr.Blocks(title=f"{title}: ranksort", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        found = gr.State(None, time_to_live=3600)
        gr.Markdown(f"## {_plain(title)}")
        with gr.Row():
            with gr.Column(scale=2):
                picture = gr.Image(
                    label="detections", format="jpeg", interactive=False, elem_id="picture", buttons=["fullscreen"]
                )
                summary = gr.Markdown(elem_id="summary")
            with gr.Column(scale=1):
                upload = gr.File(label="an image", file_types=sorted(IMAGE_SUFFIXES), elem_id="upload", height=120)
                gallery = gr.Gallery(
                    [str(path) for path in examples],
                    label="or an example",
                    columns=3,
                    height=130,
                    allow_preview=False,
                    object_fit="contain",
                    visible=bool(examples),
                    elem_id="examples",
                    buttons=[],
                    interactive=False,
                )
                threshold = gr.Slider(
                    0, 1, _start(lrp[first]), step=0.01, label="score threshold", elem_id="threshold", buttons=[]
                )
                scale = gr.HTML(_scale(models[first], lrp[first]), elem_id="scale")
                is_lrp = gr.Checkbox(
                    lrp[first] is not None,
                    label="use each class's best threshold (LRP-optimal)",
                    visible=lrp[first] is not None,
                    elem_id="lrp",
                )
                kind = gr.Radio(list(models), value=first, label="scores", visible=len(models) > 1, elem_id="scores")
                classes = gr.CheckboxGroup([], label="classes", elem_id="classes")
                download = gr.DownloadButton("JSON", interactive=False, elem_id="json", size="sm")

        run = {
            "fn": detect,
            "inputs": [upload, kind],
            "outputs": [found, classes],
            "concurrency_id": "model",
            "api_visibility": "private",
        }
        draw = {"fn": show, "inputs": [found, threshold, is_lrp, classes], "outputs": [picture, summary, download]}
        draw |= {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        upload.change(**run).success(**draw)
        kind.change(
            lambda kind: (_scale(models[kind], lrp[kind]), gr.update(visible=lrp[kind] is not None)),
            kind,
            [scale, is_lrp],
            api_visibility="private",
        ).then(**run).success(**draw)
        threshold.input(lambda: False, None, is_lrp, api_visibility="private").then(**draw)
        is_lrp.input(**draw)
        classes.input(**draw)
        if examples:
            gallery.select(_choose(examples, Path(downloads.name)), None, upload, api_visibility="private")
    return page


def serve(page: gr.Blocks, host: str, port: int, limit: int, in_browser: bool, blocks: bool = True) -> str:
    """Serve the page at an address until Ctrl-C or, if it must not block, in the background; returns the address.

    Args:
        page: the page from `build_page`.
        host: 127.0.0.1 serves this machine only; 0.0.0.0 everyone who can reach it.
        port: port of the address; 0: the first free one from 7860 on.
        limit: largest file to upload, in MB.
        in_browser: open the page in a browser.
    """
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or None,
            share=False,
            inbrowser=in_browser,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=f"{limit}mb",
            footer_links=[],
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
        )
    except OSError:
        raise ValueError(
            f"the page cannot be shown at {host}:{port or 7860}: the port is in use, or the address does not belong to this machine; "
            "choose others with --port and --host"
        ) from None
    if blocks:
        print(f"serving the page at {address} until Ctrl-C", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return address


def _choose(examples: Sequence[Path], folder: Path) -> Any:
    """The handler that uploads a clicked example: a copy in `folder`, because gradio serves no files from elsewhere."""

    def choose(event: gr.SelectData) -> str:
        copy = folder / "examples" / str(event.index) / examples[event.index].name
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(examples[event.index], copy)
        return str(copy)

    return choose


def _lrp_thresholds(model: Detector) -> tuple[float, ...] | None:
    """The LRP-optimal thresholds of a model's labels, None if it has no report."""
    try:
        return tuple(Predictor(model, "lrp").thresholds.tolist())
    except ValueError:
        return None


def _start(thresholds: tuple[float, ...] | None) -> float:
    """The initial position of the slider: the mean of the classes' thresholds, or else .3."""
    return 0.3 if not thresholds else round(sum(thresholds) / len(thresholds), 2)


def _scale(model: Detector, thresholds: tuple[float, ...] | None) -> str:
    """The LRP-optimal thresholds as marks on a scale from 0 to 1; with many classes, only minimum and maximum are labelled."""
    if thresholds is None:
        return (
            "<small>This model has no report with its best thresholds: <code>ranksort test</code> writes one.</small>"
        )
    named = sorted(zip(thresholds, model.class_names, strict=True))
    if len(named) > 6:
        named = [named[0], named[-1]]
    marks = "".join(f'<i style="left: {100 * value:.1f}%"></i>' for value in thresholds)
    names = "; ".join(f"{escape(name)} {value:.2f}" for value, name in named)
    return f'<div class="ranksort-scale" title="LRP-optimal thresholds">{marks}<span style="left: 50%">LRP-optimal: {names}</span></div>'


def _message(error: Exception, file: str) -> str:
    return str(error).replace(file, Path(file).name) or type(error).__name__


def _plain(name: str) -> str:
    """Escape a name for Markdown."""
    return escape(name).translate({ord(sign): f"\\{sign}" for sign in "\\`*_[]#|"})
