"""Share models: a folder with weights, recipe, thresholds and a model card, as for the Hugging Face Hub.

model.safetensors   weights, with recipe and classes in the header; sufficient for `load_model` and the command line
recipe.json         the same recipe, for people
report/             thresholds and calibrations of the scores, if the run's report has any
README.md           the model card: classes, metrics and what they were measured on

Nothing is pickled or unpickled. Paths of the training machine are removed.
"""

import dataclasses
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .checkpoints import Checkpoint, load_model, read_checkpoint, save_model
from .evaluation.model_scores import FILES, read_object
from .models import Detector
from .recipes import Recipe
from .recipes.recipe import DATA_PATHS, TrainingSettings

_WEIGHTS = "model.safetensors"
_SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")
_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(checkpoint: str | Path, folder: str | Path, *, report: str | Path | None = None) -> Path:
    """Save a trained model as a folder to share; `hf upload USER/NAME FOLDER` uploads it to the Hub.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        folder: a new or empty folder.
        report: folder of the report for the card, such as one of `ranksort test` on test images; by default the run's own.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: there is no such checkpoint or report.
        ValueError: the checkpoint or the report cannot be read, or the folder is not empty.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ranksort import Recipe, create_model, save_pretrained
        >>> from ranksort.checkpoints import save_model
        >>> from ranksort.data.coco_columns import Category
        >>> recipe = Recipe(name="mine")
        >>> recipe.model.backbone, recipe.model.channels = "resnet18", 64
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "model.safetensors"
        ...     save_model(file, create_model(recipe, num_classes=1), recipe, [Category(1, "cell")])
        ...     sorted(path.name for path in save_pretrained(file, Path(folder) / "my-cells").iterdir())
        ['README.md', 'model.safetensors', 'recipe.json']
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder")
    trained = read_checkpoint(checkpoint)
    if trained.note:
        warnings.warn(f"{trained.note}: saving {trained.path}", stacklevel=2)
    trained.recipe = _without_paths(trained.recipe)
    trained.scores = {kind: _without_origin(content) for kind, content in trained.scores.items()}
    own = _own_report(checkpoint)
    contents = list(_read_reports(Path(report) if report is not None else own, is_wanted=report is not None))
    model = trained.build()
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / _WEIGHTS, model, trained.recipe, trained.categories, trained.scores)
    (folder / "recipe.json").write_text(json.dumps(trained.recipe.as_dict(), indent=2) + "\n", encoding="utf-8")
    for name in [f"{part}{file}" for part in ("", "masks/") for file in FILES.values()]:
        if own is not None and (own / name).is_file():
            (folder / "report" / name).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(_without_origin(read_object(own / name)))
            (folder / "report" / name).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(trained, folder.name, contents), encoding="utf-8")
    return folder


def from_pretrained(
    source: str | Path, device: str | torch.device = "cpu", *, revision: str | None = None, **options: Any
) -> Detector:
    """Load a model that `save_pretrained` saved, in evaluation mode.

    Args:
        source: the folder, or "user/name" on the Hugging Face Hub, to be downloaded. A local folder of that name takes precedence.
        device: device to load it to.
        revision: branch, tag or commit on the Hub.
        options: further arguments of `load_model`.

    Raises:
        FileNotFoundError: it is neither a folder nor available on the Hub.
        ValueError: it is not a model of this package.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ranksort import Recipe, create_model, from_pretrained, save_pretrained
        >>> from ranksort.checkpoints import save_model
        >>> from ranksort.data.coco_columns import Category
        >>> recipe = Recipe(name="mine")
        >>> recipe.model.backbone, recipe.model.channels = "resnet18", 64
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "model.safetensors"
        ...     save_model(file, create_model(recipe, num_classes=1), recipe, [Category(1, "cell")])
        ...     from_pretrained(save_pretrained(file, Path(folder) / "my-cells")).class_names
        ('cell',)
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _fetch(str(source), revision)
    if not (folder / _WEIGHTS).is_file():
        raise FileNotFoundError(f"{source} has no {_WEIGHTS}: `save_pretrained` writes such folders")
    return load_model(folder / _WEIGHTS, device, **options)


def _fetch(name: str, revision: str | None) -> Path:
    if not _ON_THE_HUB.fullmatch(name):
        raise FileNotFoundError(f'there is no folder {name}, and it is not "user/name" on the Hugging Face Hub')
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"there is no folder {name}; to download it from the Hub: pip install huggingface_hub"
        ) from None
    try:
        patterns = [_WEIGHTS, "recipe.json", *(f"report/{name}" for name in FILES.values()), "report/masks/*.json"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # from the Hub, HTTP or the disk, without a common class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FileNotFoundError(
            f"{name} is neither a folder nor available on the Hugging Face Hub ({reason})"
        ) from None


def _without_paths(recipe: Recipe) -> Recipe:
    nothing: dict[str, Any] = dict.fromkeys(DATA_PATHS, "")
    data = dataclasses.replace(recipe.data, **nothing)
    training = dataclasses.replace(recipe.training, weights="", output=TrainingSettings.output)
    return dataclasses.replace(recipe, data=data, training=training)


def _without_origin(content: Any) -> Any:
    """The contents of a calibration without the paths of the files that it was fitted on."""
    return {key: value for key, value in content.items() if key != "about"} if isinstance(content, dict) else content


def _own_report(checkpoint: Path) -> Path | None:
    """The report of the run that a checkpoint belongs to."""
    runs = [checkpoint] if checkpoint.is_dir() else checkpoint.absolute().parents[:2]
    return next((run / "report" for run in runs if (run / "report").is_dir()), None)


def _read_reports(folder: Path | None, is_wanted: bool) -> Iterator[dict[str, Any]]:
    """The contents of a report on boxes and on masks."""
    files = [] if folder is None else [folder / "report.json", folder / "masks/report.json"]
    found = [file for file in files if file.is_file()]
    if is_wanted and not found:
        raise FileNotFoundError(f"there is no {files[0]}: `ranksort test CHECKPOINT --out {folder}` writes it")
    for file in found:
        content = read_object(file)
        try:
            _numbers(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError(f"{file} is damaged: evaluate the run again with `ranksort test`") from None
        yield content


def _card(trained: Checkpoint, name: str, reports: list[dict[str, Any]]) -> str:
    recipe, names = trained.recipe, [_text(category.name) for category in trained.categories]
    numbers = "\n".join(map(_numbers, reports)) or "Not measured.\n"
    shown = ", ".join(names[:100]) + (f" and {len(names) - 100} more" if len(names) > 100 else "")
    task = "image-segmentation" if recipe.model.has_masks else "object-detection"
    return f"""---
library_name: ranksort
pipeline_tag: {task}
tags:
- {task}
- rank-and-sort-loss
---

# {name}

A detector trained with Rank & Sort Loss (Oksuz et al., ICCV 2021) in ranksort {__version__}: {recipe.model.detector} with
{recipe.model.backbone}, recipe {recipe.name}. recipe.json has all settings.

```python
import ranksort

model = ranksort.from_pretrained("{name}")  # this folder, or "user/name" on the Hub
model.predict("photo.jpg").save("found.jpg")
```

## Classes

{shown}

## Metrics

{numbers}"""


def _numbers(report: dict[str, Any]) -> str:
    """The tables of a report as Markdown, with what they were measured on."""
    summary, settings = report["summary"], report["settings"]
    about = "".join(
        f"- {key}: {_text(_without_folders(key, str(settings[key])))}\n" for key in settings if key != "recipe"
    )
    what = {"bbox": "Boxes", "segm": "Masks"}[report["iou_type"]]
    shown = [key for key in _SHOWN if isinstance(summary.get(key), float)]
    rows = [(row["class"], row["objects"], row.get("AP"), row.get("oLRP")) for row in report["per_class"]]
    per_class = "".join(f"| {_text(str(c))} | {n} | {_percent(ap)} | {_percent(olrp)} |\n" for c, n, ap, olrp in rows)
    return (
        f"{what}, in percent; lower oLRP is better.\n\n"
        f"| {' | '.join(shown)} |\n|{'---|' * len(shown)}\n| {' | '.join(_percent(summary[key]) for key in shown)} |\n\n"
        f"{about}\n| class | objects | AP | oLRP |\n|---|---|---|---|\n{per_class}"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _without_folders(key: str, value: str) -> str:
    """A setting without folders of the machine."""
    before = {"detector": r".+? from ", "trained on": "", "evaluated on": r"(?:(?:four fifths|one fifth) of )?"}.get(
        key
    )
    return value if before is None else re.sub(rf"^({before}).*[/\\]", r"\1", value)


def _text(name: str) -> str:
    """Escape a name for Markdown, in one line."""
    return re.sub(r"([\\|`*_<>\[\]#])", r"\\\1", " ".join(name.split()))
