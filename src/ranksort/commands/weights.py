"""`convert`."""

import shlex
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..recipes.find import get_recipe
from .arguments import RecipeName, check_file


def convert(
    published: Annotated[Path, Positional, arg(metavar="PTH")],
    recipe: RecipeName,
    /,
    out: Path,
    annotations: Path | None = None,
) -> None:
    """Take weights published with the paper to a .safetensors file of this package.

    Args:
        published: the .pth file.
        recipe: the recipe of that model.
        out: the file to write.
        annotations: annotation file which names the classes; by default those of COCO.
    """
    from ..checkpoints import convert_checkpoint, save_model
    from ..data.coco import COCO_CATEGORIES
    from ..data.coco_file import read_coco_file
    from ..recipes.build import create_model

    if out.suffix != ".safetensors":
        raise ValueError(f"--out must name a .safetensors file, got {out}")
    check_file(out)
    chosen = get_recipe(recipe)
    categories = COCO_CATEGORIES
    if annotations:
        file = read_coco_file(annotations, segmentations=False)
        file.require("evaluation", without=("nothing to evaluate", "bad box"))
        categories = file.categories
    if len(categories) != chosen.model.num_classes:
        raise ValueError(
            f"{recipe} has {chosen.model.num_classes} classes, not {len(categories)}: name them by --annotations FILE.json, "
            "such as lvis_v1_val.json"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    model = create_model(chosen)
    model.load_state_dict(convert_checkpoint(published, chosen))
    save_model(out, model, chosen, categories)
    print(f"wrote {out}; next: ranksort predict {shlex.quote(str(out))} IMAGE... --out DIR")
