"""`convert`."""

import shlex
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..recipes.find import get_recipe
from .arguments import check_file


def convert(
    weights: Annotated[Path, Positional, arg(metavar="WEIGHTS")],
    recipe: Annotated[str, Positional, arg(metavar="RECIPE")] = "",
    /,
    *,
    out: Path,
    annotations: Path | None = None,
) -> None:
    """Convert the authors' or mmdetection 3 weights to .safetensors, or a ranksort model to mmdetection 3.

    Args:
        weights: a .pth file of the authors or mmdetection; or a run folder, .ckpt or .safetensors.
        recipe: recipe of a .pth file; the other files contain theirs.
        out: output file: .safetensors, or .pth for mmdetection 3.
        annotations: annotation file with the class names; by default those in the weights file, or COCO's.
    """
    from ..checkpoints import read_checkpoint, save_model
    from ..data.coco_file import read_coco_file
    from ..published import read_foreign, save_mmdetection

    if out.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"--out must name a .safetensors file, or a .pth file for mmdetection 3, got {out}")
    check_file(out)
    is_ours = weights.is_dir() or weights.suffix in (".ckpt", ".safetensors")
    if is_ours and recipe:
        raise ValueError(f"{weights} contains its recipe: leave out {recipe}")
    if not is_ours and not recipe:
        raise ValueError(f"name the recipe of {weights} after it: `ranksort recipes` lists them")
    if not is_ours and out.suffix == ".pth":
        raise ValueError(
            f"only ranksort models can be converted for mmdetection: convert {weights} to .safetensors first"
        )
    chosen = None if is_ours else get_recipe(recipe)
    categories = []
    if annotations:
        file = read_coco_file(annotations, segmentations=False)
        file.require("evaluation", without=("nothing to evaluate", "bad box"))
        categories = file.categories
    checkpoint = read_checkpoint(weights) if chosen is None else read_foreign(weights, chosen)
    count = checkpoint.recipe.model.num_classes if chosen else len(checkpoint.categories)
    checkpoint.categories = categories or checkpoint.categories
    if len(checkpoint.categories) != count:
        raise ValueError(
            f"{weights} has {count} classes, not {len(checkpoint.categories)}: name them with --annotations FILE.json, "
            "such as lvis_v1_val.json"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".pth":
        save_mmdetection(out, checkpoint)
        print(f"wrote {out} for mmdetection 3: docs/elsewhere.md lists the settings that its models need")
    else:
        save_model(out, checkpoint.build(), checkpoint.recipe, checkpoint.categories, checkpoint.scores)
        print(f"wrote {out}; next: ranksort predict {shlex.quote(str(out))} IMAGE... --out DIR")
