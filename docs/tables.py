"""Writes the tables that docs/ takes from the code: `make docs`. tests/test_docs.py compares."""

import re
from collections.abc import Iterable
from pathlib import Path

from ranksort.recipes import Recipe, get_recipe, list_recipes
from ranksort.recipes.find import recipe_functions

FOLDER = Path(__file__).parent
NAMES = {
    "atss": "ATSS",
    "paa": "PAA",
    "faster_rcnn": "Faster R-CNN",
    "cascade_rcnn": "Cascade R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "yolact": "YOLACT",
    "solov2": "SOLOv2",
    "solov2_light": "SOLOv2 light",
}
PAPER = ("box AP", "box oLRP", "mask AP", "mask oLRP")


def paper_results(name: str) -> list[str]:
    """What the paper reports for a recipe, as its docstring says it, in the order of PAPER; "" where it does not."""
    said = dict(re.findall(r"((?:box|mask) (?:AP|oLRP)) (\d+\.\d+)", recipe_functions()[name].__doc__ or ""))
    return [said.get(metric, "") for metric in PAPER]


def detector(recipe: Recipe) -> str:
    """The detector of a recipe in words."""
    return NAMES[recipe.model.detector] + ", CARAFE" * (recipe.model.upsampling == "carafe")


def backbone(recipe: Recipe) -> str:
    """The backbone of a recipe in words."""
    return recipe.model.backbone + ", DCNv2" * recipe.model.deformable_convs


def sizes(recipe: Recipe) -> str:
    """The short sides of training images in pixels."""
    if len(several := recipe.data.train_min_sizes) > 1:
        return f"{several[0]} to {several[-1]}, step {several[1] - several[0]}"
    size = recipe.model.min_size
    return f"{size} x {size}" if recipe.model.detector == "yolact" else f"{size}"


def schedule(recipe: Recipe) -> str:
    """The length of training and where the learning rate falls."""
    falls = recipe.optimizer.milestones
    return f"{recipe.training.epochs}, " + (
        "cosine" if recipe.optimizer.schedule == "cosine" else f"falls at {falls[0]}, {falls[1]}"
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def in_order() -> list[str]:
    """The names of the recipes, the published ones first."""
    return sorted(list_recipes(), key=lambda name: name.endswith("_small"))


def result_table() -> str:
    """What the paper reports for each recipe."""
    rows = [[f"`{name}`", detector(get_recipe(name)), *paper_results(name)] for name in in_order()]
    return table(["recipe", "detector", *PAPER], rows)


def recipe_table() -> str:
    """How each recipe trains."""
    rows = []
    for name in in_order():
        recipe = get_recipe(name)
        o, t, m = recipe.optimizer, recipe.training, recipe.model
        slower = "" if o.backbone_rate == 1 else f"; backbone times {o.backbone_rate:g}"
        rate = f"{o.lr:g} for {o.lr_batch_size}{slower}"
        settings = [
            backbone(recipe),
            sizes(recipe),
            schedule(recipe),
            rate,
            f"{t.batch_size}",
            f"{m.score_threshold:g}",
        ]
        rows.append([f"`{name}`", *settings])
    heads = ["recipe", "backbone", "short side", "epochs", "learning rate, images", "batch", "score threshold"]
    return table(heads, rows)


def config_table() -> str:
    """The published configurations, and how each differs from the defaults of a recipe."""
    rows = []
    plain = Recipe().as_dict()
    for name in list_recipes():
        if not name.endswith("_small"):
            recipe = get_recipe(name)
            changed = [
                f"{group}.{key} = {_value(value)}"
                for group, settings in recipe.as_dict().items()
                if group != "name"
                for key, value in settings.items()
                if value != plain[group][key]
            ]
            rows.append(
                [f"`{name}`", f"4 x {recipe.training.batch_size // 4}", "<br>".join(f"`{text}`" for text in changed)]
            )
    return table(["config and recipe", "GPUs x images", "settings other than the defaults"], rows)


def _value(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


TABLES = {"migration.md": {"configs": config_table}, "recipes.md": {"results": result_table, "recipes": recipe_table}}


def with_tables(page: Path) -> str:
    """The text of a page, with each of its tables, between `<!-- table: NAME -->` and `<!-- end -->`, made again."""
    text = page.read_text(encoding="utf-8")
    for name, make in TABLES[page.name].items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{page} has no {begin.strip()} with {end} after it")
        text = f"{before}{begin}{make()}\n{end}{after}"
    return text


if __name__ == "__main__":
    for name in TABLES:
        page = FOLDER / name
        page.write_text(with_tables(page), encoding="utf-8")
        print(page)
