import copy
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; it has to be set before anything imports Triton

from ranksort.data.synthetic import write_synthetic_dataset
from ranksort.recipes import Recipe


def pytest_configure() -> None:
    # Processes of start method "forkserver" have what takes seconds to import.
    multiprocessing.set_forkserver_preload(["torch.distributed", "ranksort.evaluation", "ranksort.recipes"])
    # Shells start jobs in the background with Ctrl-C ignored, and nohup ignores hang-ups: Python, and what the tests start, would inherit
    # that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # what is started has the default again


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest first, so that no process is left alone with one of them in the end.
    longest = ("test_notebooks.py", "test_export.py", "test_golden_rcnn.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small images to train on and four to evaluate on."""
    root = tmp_path_factory.mktemp("tiny")
    return write_synthetic_dataset(root, train_images=10, val_images=4, image_size=(128, 112), seed=1)


@pytest.fixture
def tiny_recipe(tiny_data: Path) -> Recipe:
    """A detector which trains an epoch of `tiny_data` in half a second; its checkpoints, of under 1 MB, are written in no time."""
    torch.set_num_threads(1)  # bit for bit needs one order of summation
    recipe = Recipe("tiny")
    recipe.data.root, recipe.data.workers = str(tiny_data), 0
    recipe.model.backbone, recipe.model.pretrained_backbone = "timm/lcnet_035", False
    recipe.model.channels, recipe.model.head_convs = 64, 1
    recipe.model.min_size, recipe.model.max_size = 96, 160
    recipe.training.batch_size, recipe.training.epochs = 2, 2
    recipe.optimizer.lr, recipe.optimizer.lr_batch_size = 0.01, 2
    recipe.evaluation.pictures = 2
    return copy.deepcopy(recipe)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe, Path], Path]:
    """Gives the folder `run` what training a recipe writes: trained once, since every such run ends in the same bits."""
    from ranksort import engine

    trained: dict[str, Path] = {}

    def copied(recipe: Recipe, run: Path) -> Path:
        key = json.dumps(recipe.as_dict())
        if key not in trained:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            engine.train(copy.deepcopy(recipe), folder)
            trained[key] = folder
        return Path(shutil.copytree(trained[key], run))

    return copied
