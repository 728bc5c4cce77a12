"""Whatever a JSON file may hold: an evaluation, or one sentence."""

import copy
import functools
import json
import operator

import pytest
from evaluation_data import random_masks
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ranksort.evaluation import evaluate_detections

NASTY = [
    ...,
    None,
    0,
    -1,
    1.5,
    1e300,
    10**30,
    -(10**400),
    float("nan"),
    float("inf"),
    True,
    "",
    "0.5",
    "\ud800",
    [],
    [1],
]
NASTY += [
    {},
    {"id": 1},
    [[1, 2, 3]],
    [[0, 0, 5, 5, float("nan"), 3]],
    [[0, 0, 5, 5, 1e9, 3]],
    "0" * 50,
    "ppppppppp",
    "~",
]
NASTY += [{"size": [90, 120], "counts": counts} for counts in ([-5, 10805], [5, 10**30], [], "", "PQb0", "0" * 50)]
VALUES = st.sampled_from(NASTY) | st.recursive(
    st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=5), max_leaves=8
)


def places(content, *way):
    """The keys that lead to every value of JSON content; those of the longer lists are the first few."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content[:4]):
        yield *way, key
        if isinstance(value, dict | list):
            yield from places(value, *way, key)


def lvis_content():
    ground_truth, detections = random_masks(3)
    for image in ground_truth["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [0], [3]
    for category in ground_truth["categories"]:
        category["frequency"] = "c"
    return {**ground_truth, "detections": detections[:12]}


def check_outcome(*arguments):
    """An AP, or one sentence."""
    try:
        outcome = evaluate_detections(*arguments).as_dict()["AP"]
    except ValueError as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert outcome.endswith(".")
        assert "\n" not in outcome
    else:
        assert 0 <= outcome <= 1


CONTENT = lvis_content()
PLACES = [*places(CONTENT)]


@pytest.mark.parametrize(("iou_type", "style"), [("bbox", "coco"), ("segm", "coco"), ("segm", "lvis")])
@given(st.sampled_from(PLACES), VALUES)
@settings(max_examples=300, deadline=None)
def test_any_change_gives_a_result_or_one_sentence(tmp_path_factory, iou_type, style, place, value):
    content = copy.deepcopy(CONTENT)
    *way, key = place
    container = functools.reduce(operator.getitem, way, content)
    if value is ...:
        del container[key]
    else:
        container[key] = value
    folder = tmp_path_factory.mktemp("fuzz")
    for name, part in (("truth", content), ("detections", content.get("detections"))):
        (folder / name).write_text(json.dumps(part))
    check_outcome(folder / "truth", folder / "detections", iou_type, style)


@pytest.mark.parametrize("what", ["truth", "detections"])
@given(
    st.binary(max_size=40)
    | st.builds(
        lambda depth, text: text * depth, st.integers(1, 99999), st.sampled_from([b"[", b'{"images":', b'[{"a":'])
    )
)
@example(b'{"images": [], "annotations": [{"id": ' + b"[" * 50000)
@example(b'{"images": ' + b"[" * 900 + b"]" * 900 + b', "annotations": [{}], "categories": []}')
@example(b"[" + b"1" * 5000 + b"]")
@example(b"\xef\xbb\xbf[]")
@settings(max_examples=60, deadline=None)
def test_any_bytes_give_a_result_or_one_sentence(tmp_path_factory, what, content):
    path = tmp_path_factory.mktemp("fuzz") / "file.json"
    path.write_bytes(content)
    if what == "truth":
        check_outcome(path, [])
    else:
        check_outcome(CONTENT, path)
