import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.calibration import binned_error

from ranksort.data.coco_columns import Category
from ranksort.evaluation.calibration import (
    MIN_DETECTIONS,
    calibration_errors,
    cross_calibrated,
    fit_calibrator,
    reliability,
)
from ranksort.evaluation.calibration_file import load_calibrator, save_calibrator
from ranksort.evaluation.overlaps import Samples

DISTORTIONS = {
    "cube": lambda s: s**3,
    "root": np.sqrt,
    "low": lambda s: 0.2 + 0.3 * s,
    "steep": lambda s: 1 / (1 + np.exp(9 - 18 * s)),
}


def samples_of(score, iou, category=None, images=40, num_classes=None):
    """Detections with these scores, spread over the images; those of IoU .5 or more are correct."""
    category = np.zeros(len(score), dtype=np.int32) if category is None else np.asarray(category)
    num_classes = num_classes or 1 + int(category.max(initial=0))
    image = np.arange(len(score)) % images
    correct = np.where(np.isnan(iou), np.nan, iou >= 0.5)
    return Samples(
        np.arange(len(score)), image, category, np.asarray(score), np.asarray(iou), correct, np.ones(num_classes, int)
    )


def categories(count):
    return [Category(10 + c, f"class {c}") for c in range(count)]


def calibrated_sets(count, num_classes=1, seed=0):
    """(score, iou, category): the mean IoU of the detections of a score is that score."""
    random = np.random.default_rng(seed)
    score = random.random(count)
    iou = score + np.minimum(score, 1 - score) * random.uniform(-1, 1, count)
    return score, iou, random.integers(0, num_classes, count)


def test_errors_of_an_example_computed_by_hand():
    score = np.array([0.9, 0.91, 0.1, 0.99, 0.3])
    iou = np.array([0.7, 0.9, 0.0, np.nan, 0.6])
    samples = samples_of(score, iou, [0, 0, 0, 0, 1])
    errors = calibration_errors(samples, score)
    first = (2 * abs(0.905 - 0.8) + 0.1) / 3
    assert errors.laece == pytest.approx((first + 0.3) / 2)
    assert errors.laace == pytest.approx(((0.2 + 0.01 + 0.1) / 3 + 0.3) / 2)
    assert errors.dece == pytest.approx((2 * (1 - 0.905) + 0.1 + (1 - 0.3)) / 4)


@given(
    st.lists(
        st.tuples(st.sampled_from([n / 50 for n in range(51)]) | st.floats(0, 1), st.floats(0, 1)),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=200, deadline=None)
def test_binned_error_equals_plain_loops(rows):
    score, worth = map(list, zip(*rows, strict=True))
    assert reliability(np.array(score), np.array(worth)).error == pytest.approx(binned_error(score, worth), abs=1e-9)


def test_classes_without_objects_or_detections_and_ignored_detections_do_not_count():
    score, iou = np.array([0.5, 0.5, 0.5]), np.array([0.4, np.nan, 0.0])
    samples = samples_of(score, iou, [0, 0, 2], num_classes=4)._replace(num_objects=np.array([1, 1, 0, 1]))
    assert calibration_errors(samples, score)[:2] == pytest.approx((0.1, 0.1))
    nothing = calibration_errors(samples.select(np.zeros(3, dtype=bool)), score[:0])
    assert np.isnan(nothing).all()


def test_calibrated_scores_are_found_to_be_so():
    score, iou, category = calibrated_sets(100_000, 3)
    assert calibration_errors(samples_of(score, iou, category), score).laece < 0.01


@pytest.mark.parametrize("distort", DISTORTIONS.values(), ids=DISTORTIONS)
def test_known_distortions_are_undone_on_other_images(distort):
    score, iou, category = calibrated_sets(60_000, 2)
    samples = samples_of(distort(score), iou, category)
    calibrated = cross_calibrated(samples, categories(2))
    before, after = calibration_errors(samples, samples.score), calibration_errors(samples, calibrated)
    assert after.laece < 0.015
    assert before.laece > 3 * after.laece
    assert abs(calibrated - score).mean() < 0.02


def test_a_line_undoes_a_linear_distortion():
    score, iou, _ = calibrated_sets(30_000)
    calibrator = fit_calibrator(samples_of(0.2 + 0.3 * score, iou), categories(1), method="linear")
    assert abs(calibrator(0.2 + 0.3 * score, np.zeros(len(score), int)) - score).max() < 0.02
    falling = fit_calibrator(samples_of(1 - score, iou), categories(1), method="linear").all_classes
    assert falling(np.array([0.0, 1.0])) == pytest.approx([0.5, 0.5], abs=0.02)  # no slope below 0


def test_the_probability_of_being_right_is_another_target():
    score, iou, _ = calibrated_sets(60_000)
    samples = samples_of(score, iou)
    calibrated = cross_calibrated(samples, categories(1), target="precision")
    assert calibration_errors(samples, calibrated).dece < 0.01 < calibration_errors(samples, score).dece
    assert calibration_errors(samples, calibrated).laece > 0.05


@pytest.mark.parametrize("method", ["isotonic", "linear"])
@given(st.lists(st.tuples(st.integers(0, 2**24), st.floats(0, 1)), min_size=1, max_size=80), st.integers(0, 2**24))
@settings(max_examples=150, deadline=None)
def test_order_is_strictly_kept(method, rows, other):
    score = np.array([s / 2**24 for s, _ in rows])
    samples = samples_of(score, np.array([u for _, u in rows]))
    raw = np.unique([*score, other / 2**24])
    calibrated = fit_calibrator(samples, categories(1), method=method)(raw, np.zeros(len(raw), int))
    assert (np.diff(calibrated) > 0).all()
    assert calibrated.min() >= 0
    assert calibrated.max() <= 1


def test_the_order_of_detections_does_not_matter():
    score, iou, category = calibrated_sets(500, 3)
    score = score.round(2)  # ties
    samples = samples_of(score, iou, category)
    expected = cross_calibrated(samples, categories(3))
    shuffled = np.random.default_rng(1).permutation(500)
    others = Samples(*(column[shuffled] for column in samples[:-1]), samples.num_objects)
    assert cross_calibrated(others, categories(3)) == pytest.approx(expected[shuffled], abs=1e-12)


def test_classes_of_few_detections_are_calibrated_as_all():
    category = np.repeat([0, 1, 2], [300, MIN_DETECTIONS, MIN_DETECTIONS - 1])
    score, iou, _ = calibrated_sets(len(category))
    calibrator = fit_calibrator(samples_of(score, iou, category, num_classes=4), categories(4))
    assert [curve is None for curve in calibrator.curves] == [False, False, True, True]
    assert calibrator.num_detections.tolist() == [300, MIN_DETECTIONS, MIN_DETECTIONS - 1, 0]
    raw = np.full(4, 0.4)
    values = calibrator(raw, np.array([2, 3, -1, 0]))
    assert values[:3] == pytest.approx(calibrator.all_classes(raw[:3]))
    assert values[3] != values[0]


def test_without_a_true_positive_scores_fall_to_almost_nothing():
    score = np.linspace(0, 1, 50)
    calibrated = fit_calibrator(samples_of(score, np.zeros(50)), categories(1))(score, np.zeros(50, int))
    assert calibrated.max() <= 0.001
    assert (np.diff(calibrated) > 0).all()


def test_halves_calibrate_one_another():
    # Scores that say nothing: a calibrator judged on what it was fitted to would seem to know something.
    random = np.random.default_rng(0)
    samples = samples_of(random.random(400), random.random(400), images=100)
    fitted = fit_calibrator(samples, categories(1))(samples.score, samples.category)
    honest = cross_calibrated(samples, categories(1))
    assert calibration_errors(samples, fitted).laece < calibration_errors(samples, honest).laece
    one = samples._replace(iou=np.where(samples.image == 3, 1.0, samples.iou))
    changed = cross_calibrated(one, categories(1)) != honest
    assert not changed[samples.image == 3].any()
    assert changed.any()


def test_what_cannot_be_calibrated():
    samples = samples_of(np.array([0.5, 0.6]), np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match="two or more"):
        cross_calibrated(samples, categories(1))
    with pytest.raises(ValueError, match="no detections to calibrate"):
        fit_calibrator(samples.select(np.array([False, True])), categories(1))


def test_a_file_holds_all_of_it(tmp_path):
    score, iou, category = calibrated_sets(500, 2)
    calibrator = fit_calibrator(samples_of(score, iou, category, num_classes=3), categories(3))
    save_calibrator(calibrator, tmp_path / "new" / "calibration.json", {"by": "the test"})
    loaded = load_calibrator(tmp_path / "new" / "calibration.json")
    assert (loaded.target, loaded.method, loaded.categories) == ("iou", "isotonic", categories(3))
    assert (loaded.num_detections == calibrator.num_detections).all()
    assert (loaded(score, category) == calibrator(score, category)).all()
    assert loaded.curves[2] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "[]", "is not a calibration"),
        (lambda text: text[:99], "not complete JSON"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "version 2"),
        (lambda text: text.replace('"iou"', '"size"'), "damaged"),
        (lambda text: text.replace('"detections": ', '"detections": 1' + 30 * "0"), "damaged"),
        (lambda text: text.replace('"scores": [0.0', '"scores": [0.5'), "damaged"),
        (lambda text: text.replace('"values": [', '"values": [0.5, '), "damaged"),
    ],
)
def test_another_file_is_refused_in_a_sentence(tmp_path, change, message):
    score, iou, _ = calibrated_sets(50)
    path = tmp_path / "calibration.json"
    save_calibrator(fit_calibrator(samples_of(score, iou), categories(1)), path)
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as error:
        load_calibrator(path)
    assert "\n" not in str(error.value)


def test_scipy_is_asked_for_where_it_is_missing(monkeypatch):
    score, iou, _ = calibrated_sets(50)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ValueError, match=r"ranksort\[calibration\]"):
        fit_calibrator(samples_of(score, iou), categories(1))
    fit_calibrator(samples_of(score, iou), categories(1), method="linear")
