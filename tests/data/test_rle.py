import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from ranksort.data.segmentations import rle_areas

PIXELS = 5000


def decoded(counts):
    """The runs of a compressed RLE, one after the other; None if it is none."""
    runs, value, shift = [], 0, 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift == 30:
            return None
        value += (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if runs and not shift else None


def compressed(lengths):
    """A good RLE of such runs, the last of them filling the image."""
    runs = [min(run, PIXELS // (len(lengths) + 1)) for run in lengths]
    rle = {"size": [PIXELS, 1], "counts": [*runs, PIXELS - sum(runs)]}
    return coco_mask.frPyObjects(rle, PIXELS, 1)["counts"].decode()


GOOD = st.lists(st.integers(0, 2000), max_size=12).map(compressed)
DAMAGED = st.builds(
    lambda good, place, text, cut: good[: place % len(good)] + text + good[place % len(good) + cut :],
    GOOD,
    st.integers(0, 99),
    st.text(st.characters(min_codepoint=40, max_codepoint=130), max_size=3),
    st.integers(0, 2),
)


@given(st.lists(GOOD | DAMAGED, min_size=1, max_size=6))
@example(["", "P"])
@example(["oooooo0", "o"])
@example(["0" + 9 * "ooooo?", "1ooooo?1ooooo?", "0ooooo@"])  # beyond 32 bits
def test_areas_are_those_of_runs_which_fill_the_image(counts):
    runs = [decoded(string) for string in counts]
    expected = [sum(r[1::2]) if r is not None and min(r) >= 0 and sum(r) == PIXELS else -1 for r in runs]
    assert rle_areas(counts, np.full(len(counts), PIXELS)).tolist() == expected


def test_areas_are_those_of_pycocotools():
    counts = [compressed(np.random.default_rng(n).integers(0, 90, n).tolist()) for n in range(1500)]
    pixels = np.full(1500, PIXELS)
    expected = [coco_mask.area({"size": [PIXELS, 1], "counts": string}) for string in counts]
    assert rle_areas(counts, pixels).tolist() == expected
    assert (rle_areas(counts, pixels + 1) == -1).all()
    lists = [[PIXELS - 1, 1], [PIXELS, 1], [-1, PIXELS + 1], [1.0], None]
    assert rle_areas(lists, pixels[:5]).tolist() == [1, -1, -1, -1, -1]
    mixed = [counts[1], None, lists[0], "é", "", counts[2], "PPPPPPP0", 7, counts[0][:-1]]
    found = rle_areas(mixed, pixels[:9])
    assert found[[0, 2, 5]].tolist() == [expected[1], 1, expected[2]]
    assert (np.delete(found, [0, 2, 5]) == -1).all()


def test_areas_of_large_images():
    """Runs of about 2^29 pixels, the sums of which pass 2^31, beside a small mask."""
    quarter = 1 << 29
    counts, pixels, areas = [], [], []
    for runs in ([quarter - 1] * 7, [1, quarter - 1, 0, quarter + 5, 0, quarter, 0, quarter, 0, quarter], [5, 6]):
        rle = {"size": [sum(runs), 1], "counts": runs}
        counts.append(coco_mask.frPyObjects(rle, sum(runs), 1)["counts"].decode())
        pixels.append(sum(runs))
        areas.append(sum(runs[1::2]))
    assert areas[1] > 2**31
    assert rle_areas(counts, np.array(pixels)).tolist() == areas
