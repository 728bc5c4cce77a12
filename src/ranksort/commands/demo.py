"""`demo`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from ..words import listed
from .arguments import CheckpointPath

if TYPE_CHECKING:
    from ..recipes import Recipe

_EXAMPLES = 12  # shown at most


def demo(
    checkpoint: CheckpointPath,
    /,
    examples: tuple[Path, ...] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    upload_limit: int = 20,
    open_browser: bool = True,
    device: str = "",
    detector: Annotated[str, arg(name="model.detector", aliases=["--detector"])] = "",
) -> None:
    """Try a model in the browser: drop images on a page, and choose thresholds and classes.

    Args:
        checkpoint: a run folder, .ckpt or .safetensors.
        examples: images or image folders to choose from on the page; by default validation images of the run.
        host: address to listen on; the default serves this machine only, 0.0.0.0 everyone who can reach it.
        port: port to listen on; 0: the first free one from 7860 on.
        upload_limit: largest file to upload, in MB.
        open_browser: open the page in a browser.
        device: such as cpu, cuda:1 or mps; by default an accelerator if there is one.
        detector: file.py:Class, if the checkpoint was trained with your own detector; the file is executed.
    """
    from ..checkpoints import load_model, read_checkpoint
    from ..device import usable_device
    from ..prediction.images import VIDEOS, find_images

    try:
        from ..demo import build_page, serve
    except ModuleNotFoundError as error:
        raise ValueError(f'the page needs {error.name}: pip install "ranksort[demo]"') from None
    if not 0 <= port <= 65535:
        raise ValueError(f"--port must be within 0..65535, got {port}")
    if upload_limit < 1:
        raise ValueError(f"--upload-limit must be 1 MB or more, got {upload_limit}")
    options: dict[str, Any] = {"detector": detector} if detector else {}
    place = usable_device(device)
    models = {"raw": load_model(checkpoint, place, **options)}
    with contextlib.suppress(ValueError, FileNotFoundError):  # not every model has a calibration
        models["calibrated"] = load_model(checkpoint, place, calibrated=True, **options)
    recipe = read_checkpoint(checkpoint).recipe
    found = find_images(examples)[0] if examples else validation_images(recipe)
    shown = [file for file in found if file.suffix.lower() not in VIDEOS and file.is_file()][:_EXAMPLES]
    if examples and not shown:
        raise ValueError(f"there are no images in {listed(list(map(str, examples)))}")
    title = f"{recipe.name}, {checkpoint.absolute().name}"
    serve(build_page(models, title, shown), host, port, upload_limit, open_browser)


def validation_images(recipe: "Recipe") -> list[Path]:
    """The first validation images of a run, if they still exist."""
    from ..recipes.build import build_dataset

    with contextlib.suppress(ValueError, OSError):
        dataset = build_dataset(recipe, "val")
        return [dataset.path(index) for index in range(min(len(dataset), _EXAMPLES))]
    return []
