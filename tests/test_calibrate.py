"""The commands `calibrate`, `apply-calibration` and `merge`."""

import json
from pathlib import Path

import numpy as np
import pytest

from ranksort.cli import main
from ranksort.evaluation import evaluate_detections


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """truth.json, found.json, and other.json of a second detector; 40 images of 2 classes, scores a tenth of what they are worth."""
    folder, random = tmp_path_factory.mktemp("calibrate"), np.random.default_rng(0)
    annotations, results = [], {"found": [], "other": []}
    for image in range(40):
        for place in range(6):
            box = [100 * place, 0, 80, 80]
            category = 3 + place % 2
            where = {"image_id": image, "category_id": category}
            annotations.append({"id": len(annotations), **where, "bbox": box})
            for name, factor in (("found", 0.1), ("other", 0.9)):
                shift = random.uniform(0, 60)
                score = factor * (80 - shift) / (80 + shift)
                moved = [box[0] + shift * random.choice([-1, 1]), *box[1:]]
                results[name].append({**where, "bbox": moved, "score": score, "track": place})
    truth = {
        "images": [{"id": n} for n in range(40)],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}, {"id": 9, "name": "none"}],
    }
    for name, content in {"truth": truth, **results}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_calibrate_and_apply(files, tmp_path, capsys):
    truth, found, calibration, out = (
        files / "truth.json",
        files / "found.json",
        tmp_path / "c.json",
        tmp_path / "o.json",
    )
    main(["calibrate", str(truth), str(found), "--out", str(calibration)])
    said = capsys.readouterr().out
    assert "240 detections in 40 images; 2 of 3 classes" in said
    content = json.loads(calibration.read_text())
    assert [row["class"] for row in content["thresholds"]["thresholds"] if row["threshold"]] == ["cat", "dog"]
    errors = content["about"]["errors"]
    assert errors["before.all"]["laece"] > 3 * errors["after.all"]["laece"]
    assert f"{100 * errors['after.all']['laece']:.1f}" in said

    main(["apply-calibration", str(calibration), str(found), "--out", str(out)])
    rows, calibrated = json.loads(found.read_text()), json.loads(out.read_text())
    assert [{**row, "score": 0} for row in calibrated] == [{**row, "score": 0, "calibrated": "iou"} for row in rows]
    assert np.abs([new["score"] - 10 * row["score"] for new, row in zip(calibrated, rows, strict=True)]).mean() < 0.05
    before, after = (evaluate_detections(truth, path).as_dict() for path in (found, out))
    assert after == pytest.approx(before, abs=1e-12, nan_ok=True)


def test_calibrating_twice_is_refused_and_merging_ends_a_calibration(files, tmp_path, capsys):
    found, other, calibration, out = (
        files / "found.json",
        files / "other.json",
        tmp_path / "c.json",
        tmp_path / "o.json",
    )
    main(["calibrate", str(files / "truth.json"), str(found), "--out", str(calibration)])
    main(["apply-calibration", str(calibration), str(found), "--out", str(out)])
    again = refused(capsys, "apply-calibration", calibration, out, "--out", tmp_path / "twice.json")
    assert "240 of the 240 detections are already calibrated" in again
    unmarked = [{**row, "calibrated": None} for row in json.loads(found.read_text())]  # as pandas writes an empty cell
    (tmp_path / "unmarked.json").write_text(json.dumps(unmarked))
    main(["apply-calibration", str(calibration), str(tmp_path / "unmarked.json"), "--out", str(tmp_path / "same.json")])
    assert json.loads((tmp_path / "same.json").read_text()) == json.loads(out.read_text())
    assert "are already calibrated" in refused(capsys, "calibrate", files / "truth.json", out, "--out", calibration)
    report = evaluate_detections(files / "truth.json", out)
    assert report.notes()[-1] == "The scores are calibrated (iou)."
    assert report.scores_are != evaluate_detections(files / "truth.json", files / "found.json").scores_are == "raw"
    main(["merge", str(out), str(other), "--out", str(tmp_path / "merged.json")])
    said = capsys.readouterr().out
    assert (
        f"are on different scales, so the wrong detections may win: {out}: the expected IoU; {other}: as the model"
        in said
    )
    assert not any("calibrated" in row for row in json.loads((tmp_path / "merged.json").read_text()))
    main(["merge", str(found), str(other), "--out", str(tmp_path / "merged.json")])
    assert "are on different scales" not in capsys.readouterr().out


def test_ids_may_be_spelled_as_strings_and_classes_be_unknown(files, tmp_path, capsys):
    calibration, out = tmp_path / "c.json", tmp_path / "o.json"
    main(["calibrate", str(files / "truth.json"), str(files / "found.json"), "--out", str(calibration)])
    rows = [{"image_id": "new", "category_id": id, "score": 0.05} for id in (3, "3", 77, 9)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    main(["apply-calibration", str(calibration), str(tmp_path / "rows.json"), "--out", str(out)])
    first, same, unknown, few = (row["score"] for row in json.loads(out.read_text()))
    assert first == same != unknown == few
    assert "1 detections have categories unknown to the calibration" in capsys.readouterr().out


def test_merging_calibrated_detectors_is_better_than_each(files, tmp_path):
    truth, paths = files / "truth.json", []
    for name in ("found", "other"):
        calibration, out = tmp_path / f"{name}_c.json", tmp_path / f"{name}.json"
        main(["calibrate", str(truth), str(files / f"{name}.json"), "--out", str(calibration)])
        main(["apply-calibration", str(calibration), str(files / f"{name}.json"), "--out", str(out)])
        paths.append(str(out))
    merged, raw = str(tmp_path / "merged.json"), str(tmp_path / "raw.json")
    main(["merge", *paths, "--out", merged])
    main(["merge", str(files / "found.json"), str(files / "other.json"), "--out", raw])
    ap = {path: evaluate_detections(truth, path).as_dict()["AP"] for path in (*paths, raw, merged)}
    assert ap[merged] > max(ap[path] for path in (*paths, raw))


def test_what_is_wrong_is_said_in_a_sentence(files, tmp_path, capsys):
    truth, found = files / "truth.json", files / "found.json"
    assert "is also an input" in refused(capsys, "calibrate", truth, found, "--out", found)
    assert "is not a calibration" in refused(capsys, "apply-calibration", truth, found, "--out", tmp_path / "o.json")
    assert "two or more models" in refused(capsys, "merge", found, "--out", tmp_path / "o.json")
    assert "must be 1 or more" in refused(capsys, "merge", found, found, "--detections-per-image", "0")
    assert "does not exist" in refused(capsys, "merge", found, tmp_path / "none.json")
    assert "no detections to calibrate" in refused(capsys, "calibrate", truth, write(tmp_path, []))


BAD_ROWS = {
    "must be a JSON list": {},
    "1 of 2 rows of the list of detections": [{"image_id": 1, "category_id": 1, "score": 0.5}, 3],
    "have no 'image_id'": [{"category_id": 1, "score": 0.5}],
    "have no 'category_id'": [{"image_id": 1, "category_id": True, "score": 0.5}],
    "have no 'score'": [{"image_id": 1, "category_id": 1, "score": "0.5"}],
    "have a score outside 0..1": [{"image_id": 1, "category_id": 1, "score": 50}],
    "have no 'bbox'": [{"image_id": 1, "category_id": 1, "score": 0.5}],
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_bad_rows_are_named(files, tmp_path, capsys, message):
    error = refused(
        capsys, "merge", files / "found.json", write(tmp_path, BAD_ROWS[message]), "--out", tmp_path / "o.json"
    )
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o.json").exists()


def write(folder: Path, content) -> Path:
    (folder / "rows.json").write_text(json.dumps(content))
    return folder / "rows.json"
