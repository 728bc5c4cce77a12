"""Image files are found in an annotation file by their names, or refused in a sentence."""

from pathlib import Path
from typing import Any

import pytest

from ranksort.data.coco_file import read_coco_file
from ranksort.data.image_ids import find_image_ids

NAMES = {
    1: "a.jpg",
    2: "left/b.jpg",
    3: "right/b.jpg",
    "x4": "train2017\\c.jpg",
    5: "./d.jpg",
    6: "e.jpg",
    7: "e.jpg",
    8: "deep/a.jpg",
}


def find(*paths: str) -> list[Any]:
    images = [{"id": id, "file_name": name, "width": 9, "height": 9} for id, name in NAMES.items()]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    return find_image_ids([Path(path) for path in paths], read_coco_file(content, segmentations=False))


def test_names_are_the_ends_of_paths_or_unique_without_folders() -> None:
    assert find("images/right/b.jpg", "a.jpg", "images/c.jpg", "/data/left/b.jpg", "d.jpg") == [3, 1, "x4", 2, 5]
    assert find("other/a.jpg", "images/deep/a.jpg") == [1, 8]


def test_images_of_other_files_have_no_id() -> None:
    assert find("z.jpg", "a.jpg", "y.jpg") == [None, 1, None]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["images/b.jpg"], "has several images that images/b.jpg could be"),
        (["e.jpg"], "has several images that e.jpg could be"),
        (["one/a.jpg", "two/a.jpg"], "one/a.jpg and two/a.jpg are the same image"),
    ],
)
def test_what_cannot_be_told(paths: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        find(*paths)
