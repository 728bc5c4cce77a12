"""Small recipes for the other detectors, at a size for which a CPU is enough: do they learn?

ranksort quickstart --recipe benchmarks/small_recipes.py:paa --out paa
ranksort train benchmarks/small_recipes.py:solov2 --data.root DIR
"""

import dataclasses

from ranksort.recipes import Recipe, get_recipe


def paa() -> Recipe:
    return _small("ranksort_paa_r50_fpn_1x_coco")


def yolact() -> Recipe:
    recipe = _small("ranksort_yolact_r50_55e_coco")
    recipe.model.max_size = recipe.model.min_size
    recipe.model.train_batch_norm = False
    recipe.data.augmentation = "flip"
    recipe.optimizer.schedule = "cosine"
    recipe.optimizer.lr = 0.0002  # its heads have no norms
    return recipe


def solov2() -> Recipe:
    recipe = _small("ranksort_solov2_light_448_r34_fpn_3x")
    recipe.data.train_min_sizes = ()
    return recipe


def _small(name: str) -> Recipe:
    """A published recipe with the backbone, image sizes and optimiser of ranksort_atss_lite0_small."""
    recipe, small = get_recipe(name), get_recipe("ranksort_atss_lite0_small")
    same = ("backbone", "frozen_stages", "pixel_mean", "pixel_std", "channels", "min_size", "max_size")
    same += ("prior", "score_threshold", "head_convs")
    recipe.model = dataclasses.replace(recipe.model, **{field: getattr(small.model, field) for field in same})
    recipe.optimizer, recipe.training, recipe.data.workers = small.optimizer, small.training, 1
    return recipe
