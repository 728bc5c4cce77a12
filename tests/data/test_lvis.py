import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ranksort.data.check import check_data
from ranksort.data.coco import CocoDataset
from ranksort.data.coco_rows import ImageRow
from ranksort.data.layouts import find_split
from ranksort.data.lvis import file_name, random_repeats, repeat_factors
from ranksort.data.samplers import AspectRatioBatchSampler

factor_lists = st.lists(st.floats(1, 6), min_size=1, max_size=60)
LIMITED = {"neg_category_ids": [7], "not_exhaustive_category_ids": [3]}


def test_repeat_factors_by_hand() -> None:
    """Of 100 images, class 0 is in all but the last, class 1 in 4, class 2 in one, class 3 in none."""
    image = np.array([*range(99), 0, 1, 2, 3, 3, 3, 5])
    label = np.array([*[0] * 99, 1, 1, 1, 1, 1, 1, 2])
    factors = repeat_factors(image, label, 100, threshold=0.16)
    expected = np.ones(100)
    expected[:4] = 2  # sqrt(.16 / .04)
    expected[5] = 4  # sqrt(.16 / .01)
    np.testing.assert_allclose(factors, expected, rtol=1e-12)
    assert (repeat_factors(image, label, 100, threshold=0) == 1).all()
    assert (repeat_factors(image[:0], label[:0], 3, threshold=0.1) == 1).all()


@given(factors=factor_lists, seed=st.integers(0, 99))
def test_repeats_are_the_factors_rounded(factors: list[float], seed: int) -> None:
    repeats = random_repeats(np.array(factors), np.random.default_rng(seed))
    assert (np.abs(repeats - factors) < 1 + 1e-9).all()
    assert abs(repeats.sum() - sum(factors)) < 1 + 1e-9


def test_repeats_are_the_factors_on_average() -> None:
    factors, rng = np.array([1.0, 1.25, 1.5, 2.9, 3.0, 1.01]), np.random.default_rng(0)
    draws = np.array([random_repeats(factors, rng) for _ in range(4000)])
    np.testing.assert_allclose(draws.mean(axis=0), factors, atol=0.03)
    assert (draws[:, [0, 4]] == [1, 3]).all()
    # Which images are rounded up together is left to chance.
    assert len(np.unique(draws, axis=0)) > 7


@given(
    factors=factor_lists,
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 3),
    seed=st.integers(0, 9),
    skipped=st.integers(0, 20),
)
def test_epochs_with_repeats(factors: list[float], batch_size: int, world_size: int, seed: int, skipped: int) -> None:
    landscape = [i % 3 > 0 for i in range(len(factors))]
    samplers = [
        AspectRatioBatchSampler(
            landscape, batch_size, repeat_factors=np.array(factors), seed=seed, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    for epoch in range(3):
        batches = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            batches.append(list(sampler))
            sampler.skip(skipped)
            assert list(sampler) == batches[-1][skipped:]
            sampler.skip(0)
        assert {len(of_rank) for of_rank in batches} == {len(samplers[0])}
        counts = Counter(index for of_rank in batches for batch in of_rank for index, _ in batch)
        assert set(counts) == set(range(len(factors)))
        assert all(counts[i] >= int(factor) for i, factor in enumerate(factors))
        total, padding = sum(counts.values()), 2 * batch_size * world_size
        assert sum(factors) - 1e-5 <= total < sum(factors) + padding


def test_images_are_named_by_their_url() -> None:
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    assert file_name(ImageRow(coco_url=url, **LIMITED)) == "train2017/000000391895.jpg"
    assert file_name(ImageRow(coco_url=url, file_name="COCO_val2014_000000391895.jpg", **LIMITED))[:9] == "train2017"
    assert file_name(ImageRow(coco_url=url, file_name="a.jpg")) == "a.jpg"  # COCO has URLs, too
    assert file_name(ImageRow(file_name="a.jpg", **LIMITED)) == "a.jpg"
    assert file_name(ImageRow(coco_url=url)) is None
    assert file_name(ImageRow(coco_url="http://x/train2017/../../passwd", **LIMITED)) is None
    for other in ("http://x/own.jpg", ""):  # of other data sets in this format
        assert file_name(ImageRow(coco_url=other, file_name="a.jpg", **LIMITED)) == "a.jpg"


@pytest.fixture
def lvis_root(content: dict[str, Any], tmp_path: Path) -> Path:
    """The small data set of `content` as LVIS v1 would publish it."""
    for image, folder in zip(content["images"], ("train2017", "val2017"), strict=True):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / folder / f"{image['id']}.jpg")
        image.pop("file_name")
        image |= {"coco_url": f"http://images.cocodataset.org/{folder}/{image['id']}.jpg", **LIMITED}
    for category in content["categories"]:
        category["frequency"] = "c"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "lvis_v1_train.json").write_text(json.dumps(content))
    return tmp_path


def test_lvis_layout(lvis_root: Path) -> None:
    files = find_split(lvis_root, "train", style="lvis")
    assert files == (lvis_root, lvis_root / "annotations" / "lvis_v1_train.json", None)
    dataset = CocoDataset(*files, training=True, masks=True)
    assert [dataset[i][0].shape[1:] for i in range(2)] == [(48, 64), (64, 48)]
    # Both images have the dog, which the threshold says is too few; the cat is in one of them.
    np.testing.assert_allclose(dataset.repeat_factors(1.0), [2**0.5, 1])
    assert check_data(*files[:2]).faults == []
    with pytest.raises(FileNotFoundError, match=r"lvis_v1_val\.json.*--data\.val-annotations"):
        find_split(lvis_root, "val", style="lvis")
    for image in lvis_root.glob("*2017/*.jpg"):
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r"train2017/1\.jpg .* is in none of .*--data\.train-images"):
        find_split(lvis_root, "train", style="lvis")


@pytest.mark.parametrize("ids", [[5], ["8"], 7, [None], [True]])
@pytest.mark.parametrize("key", LIMITED)
def test_bad_federated_annotation_is_named(lvis_root: Path, key: str, ids: Any) -> None:
    path = lvis_root / "annotations" / "lvis_v1_train.json"
    content = json.loads(path.read_text())
    content["images"][1][key] = ids
    path.write_text(json.dumps(content))
    (fault,) = check_data(lvis_root, path).faults
    assert fault.consequences == ("refused",) * 4
    with pytest.raises(ValueError, match="image 2 lists a category that the file does not have"):
        CocoDataset(lvis_root, path, training=True)


def test_lvis100_as_its_readme_counts_it(shared_data: Path, tmp_path: Path) -> None:
    annotations = shared_data / "lvis100/annotations/lvis_val_100.json"
    for image in json.loads(annotations.read_text())["images"]:
        path = tmp_path / "/".join(image["coco_url"].split("/")[-2:])
        path.parent.mkdir(exist_ok=True)
        path.touch()
    dataset = CocoDataset(tmp_path, annotations, training=True, masks=True)
    assert len(dataset) == 93
    assert len(dataset.categories) == 1230
    factors = dataset.repeat_factors(0.02)
    assert factors.min() == 1
    assert factors.max() == pytest.approx((0.02 * 93) ** 0.5)  # a class of one image
