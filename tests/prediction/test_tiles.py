"""What tiles find is what is in the image, each object once."""

import numpy as np
import pytest
import torch
from colour_detector import Colours, paint
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from ranksort.prediction import Prediction
from ranksort.prediction.tiles import cover, join, place


@given(st.integers(1, 300), st.integers(1, 300), st.integers(32, 100), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_tiles_cover_the_image_and_share_what_they_should(height: int, width: int, side: int, overlap: float) -> None:
    tiles = cover(height, width, side, overlap)
    seen = np.zeros((height, width), bool)
    for (x, y, x2, y2), (left, top, right, bottom) in zip(tiles.boxes.tolist(), tiles.shared.tolist(), strict=True):
        assert (x2 - x, y2 - y) == (min(side, width), min(side, height))
        seen[y:y2, x:x2] = True
        assert [left == -1, top == -1, right == -1, bottom == -1] == [x == 0, y == 0, x2 == width, y2 == height]
        least = np.floor(overlap * side)
        assert all(shared == -1 or least <= shared < side for shared in (left, top, right, bottom))
    assert seen.all()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_small_objects_are_found_whole_and_once(data: st.DataObject) -> None:
    """Of 64 px tiles that share 20 px or more; of 18 px objects wherever they lie."""
    image = torch.zeros(3, 150, 170, dtype=torch.uint8)
    placed: list[tuple[int, int, int, int]] = []
    for number in range(1, 8):
        x, y = data.draw(st.integers(0, 152)), data.draw(st.integers(0, 132))
        w, h = data.draw(st.integers(4, 18)), data.draw(st.integers(4, 18))
        box = (x, y, min(x + w, 170), min(y + h, 150))
        if min(box[2] - x, box[3] - y) >= 4 and all(
            x >= b[2] or box[2] <= b[0] or y >= b[3] or box[3] <= b[1] for b in placed
        ):
            paint(image, box, number)
            placed.append(box)
    found = Colours().predict(image, tile=64, overlap=0.3)
    assert isinstance(found, Prediction)
    assert sorted(map(tuple, found.boxes.astype(int).tolist())) == sorted(placed)
    assert np.all(np.diff(found.scores) <= 0)
    assert found.masks is not None
    for box, mask in zip(found.boxes.astype(int).tolist(), found.masks, strict=True):
        assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert mask[box[1] : box[3], box[0] : box[2]].all()


@pytest.mark.parametrize("box", [(10, 50, 160, 70), (40, 10, 60, 140), (30, 30, 80, 85), (0, 0, 170, 150)])
def test_what_no_tile_sees_whole_is_put_together(colours: Colours, box: tuple[int, int, int, int]) -> None:
    image = torch.zeros(3, 150, 170, dtype=torch.uint8)
    paint(image, box, 1)
    found = colours.predict(image, tile=64, overlap=0.3)
    assert isinstance(found, Prediction)
    assert len(found) == 1
    np.testing.assert_allclose(found.boxes[0], box, atol=4)  # larger than a tile: of the shrunk image
    assert found.masks is not None
    x, y, x2, y2 = box
    wanted = np.zeros((150, 170), bool)
    wanted[y:y2, x:x2] = True
    assert (found.masks[0] & wanted).sum() / (found.masks[0] | wanted).sum() > 0.75


def test_neighbours_of_one_class_stay_two(colours: Colours) -> None:
    """Two objects side by side on the strip of two tiles."""
    image = torch.zeros(3, 64, 108, dtype=torch.uint8)
    paint(image, (46, 10, 62, 20), 3)
    paint(image, (46, 21, 62, 31), 6)
    paint(image, (46, 40, 62, 50), 2)
    found = colours.predict(image, tile=64, overlap=0.3)
    assert isinstance(found, Prediction)
    assert sorted(found.labels.tolist()) == [0, 0, 2]


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_masks_are_placed_as_pycocotools_encodes_them(seed: int, full: bool) -> None:
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 12, 2)
    y, x = (0, 0) if full else random.integers(0, 5, 2)
    mask = random.random((height, width)) < random.choice([0, 0.2, 0.8, 1])
    size = (int(y + height + (0 if full else random.integers(0, 5))), int(x + width + random.integers(0, 5)))
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    part = Prediction(np.zeros((1, 4)), np.ones(1), np.zeros(1, int), ("a",), (int(height), int(width)), [rle])
    placed = place(part, (int(x), int(y), int(x + width), int(y + height)), size)
    wanted = np.zeros(size, np.uint8)
    wanted[y : y + height, x : x + width] = mask
    assert placed.rles is not None
    assert placed.rles[0]["counts"] == coco_mask.encode(np.asfortranarray(wanted))["counts"].decode()
    assert placed.rles[0]["size"] == list(size)


def test_masks_of_a_shrunk_image_grow_with_it() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:8, 4:16] = 1
    part = Prediction(
        np.array([[4.0, 2, 16, 8]], np.float32),
        np.ones(1),
        np.zeros(1, int),
        ("a",),
        (10, 20),
        [coco_mask.encode(np.asfortranarray(mask))],
    )
    placed = place(part, (0, 0, 200, 100), (100, 200))
    assert placed.boxes.tolist() == [[40, 20, 160, 80]]
    assert placed.masks is not None
    wanted = np.zeros((100, 200), bool)
    wanted[20:80, 40:160] = True
    assert (placed.masks[0] ^ wanted).mean() < 0.01


def found_in(width: int, *rows: tuple[tuple[float, float, float, float], float]) -> Prediction:
    """Boxes and scores, of one class, in an image 64 pixels high."""
    boxes = np.array([box for box, _ in rows], dtype=np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in rows], dtype=np.float32)
    return Prediction(boxes, scores, np.zeros(len(rows), dtype=np.int64), ("thing",), (64, width))


def test_a_piece_is_dropped_only_where_the_neighbour_sees_all_of_it() -> None:
    tiles = cover(64, 108, 64, 0.3)
    assert tiles.shared[:, [0, 2]].tolist() == [[-1, 20], [20, -1]]
    for left, number in (
        (44.5, 1),
        (45.5, 0),
    ):  # the neighbour begins at 44, and takes a box that begins at 45 for a piece
        part = found_in(108, ((left, 10, 64, 30), 0.9))
        assert len(join([part, found_in(108)], tiles, found_in(108))) == number


def test_a_whole_object_stands_for_its_pieces_of_higher_score() -> None:
    whole = found_in(108, ((5, 10, 100, 50), 0.5))
    parts = [found_in(108, ((5, 10, 64, 50), 0.9)), found_in(108, ((44, 10, 100, 50), 0.8))]
    joined = join(parts, cover(64, 108, 64, 0.3), whole)
    assert joined.boxes.tolist() == [[5, 10, 100, 50]]
    assert joined.scores.tolist() == [0.5]
