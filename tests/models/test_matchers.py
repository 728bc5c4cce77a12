import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import atss as oracle
from oracles import rcnn as rcnn_oracle
from torch import Tensor

from ranksort.models.anchors import AnchorGenerator
from ranksort.models.matchers import IGNORED, NEGATIVE, collect, match_atss, match_iou

CPU = torch.device("cpu")
SIDE = 96  # pixels of the batch


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x, y = draw(st.floats(-10, SIDE, width=32)), draw(st.floats(-10, SIDE, width=32))
    return [x, y, x + draw(st.floats(2, SIDE, width=32)), y + draw(st.floats(2, SIDE, width=32))]


def _grid(strides: tuple[int, ...], scales: list[float], image: tuple[int, int]) -> tuple[list[Tensor], list[Tensor]]:
    generator = AnchorGenerator(strides, scales)
    sizes = [(-(-SIDE // s), -(-SIDE // s)) for s in strides]
    return generator(sizes, CPU), generator.in_image(sizes, image, CPU)


def _oracle(anchors: list[Tensor], objects: Tensor, inside: list[Tensor], top_k: int = 9) -> oracle.Assignment:
    return oracle.assign([a.tolist() for a in anchors], objects.tolist(), [i.tolist() for i in inside], top_k)


def _object_boxes(matches: Tensor, objects: Tensor) -> list[list[float] | int]:
    """Who owns each anchor, equal objects being the same."""
    return [objects[m].tolist() if m >= 0 else int(m) for m in matches]


@settings(max_examples=60, deadline=None)
@given(
    objects=st.lists(boxes(), max_size=5),
    twins=st.booleans(),
    strides=st.sampled_from([(8, 16, 32), (16, 32, 64), (32, 64, 128)]),  # the last ones with 4 cells and 1
    scales=st.sampled_from([[4.0], [4.0, 5.0, 6.4], [2.0, 4.0]]),
    image=st.sampled_from([(SIDE, SIDE), (64, SIDE), (SIDE, 32), (32, 32)]),
    top_k=st.sampled_from([1, 3, 9]),
)
def test_agrees_with_the_paper(
    objects: list[list[float]],
    twins: bool,
    strides: tuple[int, ...],
    scales: list[float],
    image: tuple[int, int],
    top_k: int,
) -> None:
    anchors, inside = _grid(strides, scales, image)
    tensor = torch.tensor(objects + objects[:1] * twins).reshape(-1, 4)
    expected = _oracle(anchors, tensor, inside, top_k)
    assume(expected.margin > 1e-4)
    ours = match_atss(anchors, tensor, inside, top_k)
    assert ours.dtype == torch.int64
    assert _object_boxes(ours, tensor) == _object_boxes(torch.tensor(expected.owner), tensor)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), levels=st.lists(st.integers(1, 30), min_size=1, max_size=4), count=st.integers(0, 6))
def test_agrees_with_the_paper_on_anchors_without_order(seed: int, levels: list[int], count: int) -> None:
    """Anchors anywhere, of any shape, ignored at random; many levels have fewer than 9."""
    generator = torch.Generator().manual_seed(seed)

    def random_boxes(n: int) -> Tensor:
        corner = torch.rand(n, 2, generator=generator) * 60
        return torch.cat([corner, corner + 5 + torch.rand(n, 2, generator=generator) * 60], 1)

    anchors = [random_boxes(n) for n in levels]
    inside = [torch.rand(n, generator=generator) < 0.8 for n in levels]
    assume(any(bool(i.any()) for i in inside))
    objects = random_boxes(count)
    expected = _oracle(anchors, objects, inside)
    assume(expected.margin > 1e-4)
    assert match_atss(anchors, objects, inside).tolist() == expected.owner


@settings(max_examples=40, deadline=None)
@given(row=st.integers(3, 8), column=st.integers(3, 8), half=st.sampled_from([8.0, 16.0, 20.0]), shift=st.booleans())
def test_ties_change_who_but_not_how_many(row: int, column: int, half: float, shift: bool) -> None:
    """A square centred on a corner of the grid, or between four, has equally near anchors of equal IoU: any of them will do."""
    anchors, inside = _grid((8, 16, 32), [4.0], (SIDE, SIDE))
    x, y = 8.0 * column + 4 * shift, 8.0 * row + 4 * shift
    objects = torch.tensor([[x - half, y - half, x + half, y + half]])
    ours, expected = match_atss(anchors, objects, inside), torch.tensor(_oracle(anchors, objects, inside).owner)
    assert (ours >= 0).sum() == (expected >= 0).sum()


def test_anchor_of_two_objects_goes_to_the_higher_iou() -> None:
    far = [[60.0 + 5 * i, 60, 80 + 5 * i, 80] for i in range(7)]
    anchors = [torch.tensor([[0.0, 0, 20, 20], [2, 0, 22, 20], *far])]
    inside = [torch.ones(9, dtype=torch.bool)]
    objects = torch.tensor([[0.0, 0, 21, 20], [0.5, 0, 22, 20.5]])  # either is wanted by both
    assert match_atss(anchors, objects, inside).tolist() == [0, 1, *[NEGATIVE] * 7]
    assert match_atss(anchors, objects.flip(0), inside).tolist() == [1, 0, *[NEGATIVE] * 7]
    assert match_atss(anchors, objects[:1], inside).tolist() == [0, 0, *[NEGATIVE] * 7]


def test_no_objects() -> None:
    anchors, inside = _grid((8, 16), [4.0], (64, 32))
    matches = match_atss(anchors, torch.zeros(0, 4), inside)
    flags = torch.cat(inside)
    assert bool((matches[flags] == NEGATIVE).all())
    assert bool((matches[~flags] == IGNORED).all())
    assert bool((~flags).any())


def test_padding_is_never_positive_and_changes_nothing_else() -> None:
    """An image in a large batch is matched as it is on its own."""
    objects = torch.tensor([[3.3, 5.1, 30.9, 60.2], [19.7, 10.2, 31.1, 33.8], [0.4, 41.3, 29.8, 63.9]])
    anchors, inside = _grid((8, 16, 32), [4.0, 5.0, 6.4], (64, 32))
    flags = torch.cat(inside)
    matches = match_atss(anchors, objects, inside)
    assert bool((matches[~flags] == IGNORED).all())
    alone = [a[i] for a, i in zip(anchors, inside, strict=True)]
    expected = match_atss(alone, objects, [torch.ones(len(a), dtype=torch.bool) for a in alone])
    assert torch.equal(matches[flags], expected)
    assert int((expected >= 0).sum()) > 3


integer_boxes = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2).map(
    lambda b: [float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3])]
)


@settings(max_examples=200, deadline=None)
@given(
    regions=st.lists(integer_boxes, max_size=12),
    objects=st.lists(integer_boxes, max_size=4),
    thresholds=st.sampled_from([(0.7, 0.3, 0.3), (0.5, 0.5, None), (0.5, 0.5, 0.5), (0.6, 0.2, 0.0)]),
    one_best=st.booleans(),
)
def test_match_iou(
    regions: list[list[float]],
    objects: list[list[float]],
    thresholds: tuple[float, float, float | None],
    one_best: bool,
) -> None:
    """Boxes of few sizes at few places: many equal IoUs."""
    given_regions, given_objects = torch.tensor(regions).reshape(-1, 4), torch.tensor(objects).reshape(-1, 4)
    positive, negative, low_quality = thresholds
    matches = match_iou(
        given_regions,
        given_objects,
        positive=positive,
        negative=negative,
        low_quality=low_quality,
        one_best=one_best,
    )
    assert matches.dtype == torch.int64
    assert matches.tolist() == rcnn_oracle.match_iou(given_regions, given_objects, *thresholds, one_best)


@pytest.mark.parametrize(
    ("low_quality", "expected"),
    [(None, [0, NEGATIVE, IGNORED]), (0.3, [0, NEGATIVE, 1]), (0.7, [0, NEGATIVE, IGNORED])],
)
def test_match_iou_by_hand(low_quality: float | None, expected: list[int]) -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    regions = torch.tensor([[0.0, 0, 10, 9], [30, 30, 40, 40], [50, 50, 60, 55]])  # IoUs .9, 0, .5
    assert match_iou(regions, objects, positive=0.7, negative=0.3, low_quality=low_quality).tolist() == expected


def test_of_equally_good_regions_one_or_all_belong_to_the_object() -> None:
    """The first two objects lie alike: the last of several owns what is the best of all of them."""
    regions = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [2, 0, 6, 4], [10, 0, 14, 4]])
    objects = torch.tensor([[3.0, 0, 5, 4], [3, 0, 5, 4], [2, 1, 10, 3]])  # IoUs 1/5, 1/5, 1/2 and 1/7, 1/3, 1/3

    def match(**options: bool) -> list[int]:
        return match_iou(regions, objects, positive=0.9, negative=0.4, low_quality=0, **options).tolist()

    assert match(one_best=True) == [NEGATIVE, 2, 1, NEGATIVE]
    assert match() == [NEGATIVE, 2, 2, NEGATIVE]


def test_an_object_without_any_overlap_has_no_best_region() -> None:
    regions, far = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4]]), torch.tensor([[30.0, 30, 40, 40]])
    for one_best in (False, True):
        matches = match_iou(regions, far, positive=0.5, negative=0.4, low_quality=0, one_best=one_best)
        assert matches.tolist() == [NEGATIVE, NEGATIVE]


def test_a_tiny_object_has_its_best_region() -> None:
    regions, speck = torch.tensor([[0.0, 0, 64, 64], [64, 0, 128, 64]]), torch.tensor([[9.0, 9, 9.01, 9.01]])
    assert match_iou(regions, speck, positive=0.5, negative=0.4, low_quality=0).tolist() == [0, NEGATIVE]


def test_collect() -> None:
    targets = [
        {"labels": torch.tensor([5, 7]), "boxes": torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]])},
        {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        {"labels": torch.tensor([9]), "boxes": torch.tensor([[0.0, 0, 3, 3]])},
    ]
    matches = [torch.tensor([1, -1, 0, -2]), torch.tensor([-1, -2, -1, -1]), torch.tensor([-2, 0, -1, 0])]
    matched = collect(matches, targets)
    assert matched.positive.tolist() == [0, 2, 9, 11]
    assert matched.labels.tolist() == [7, 5, 9, 9]
    assert matched.boxes[:, 2].tolist() == [2, 1, 3, 3]
    assert matched.ignored.nonzero().flatten().tolist() == [3, 5, 8]
    assert matched.image.tolist() == [0, 0, 2, 2]
    assert matched.object.tolist() == [1, 0, 0, 0]


def test_collect_without_any_object() -> None:
    target = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    matched = collect([torch.tensor([-1, -2])] * 2, [target] * 2)
    assert matched.positive.tolist() == []
    assert matched.labels.dtype == torch.int64
    assert matched.boxes.shape == (0, 4)
    assert matched.ignored.tolist() == [False, True, False, True]
