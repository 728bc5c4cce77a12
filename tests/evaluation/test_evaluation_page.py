"""The report's page in a real browser."""

import copy
import json

import pytest
from browser import CHROMIUM, Browser
from evaluation_data import random_masks

from ranksort.evaluation import evaluate_detections
from ranksort.evaluation.page import _training_curves, save_page

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><!--"
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def run(tmp_path):
    """A run folder with a report of boxes and one of masks, whose first class has a hostile name, and curves of its training."""
    ground_truth, detections = random_masks(2)
    ground_truth["categories"][0]["name"] = HOSTILE
    settings = {"recipe": HOSTILE, "epochs": "3"}
    folder = tmp_path / "run"
    evaluate_detections(ground_truth, detections, "bbox").save_numbers(folder / "report", settings)
    evaluate_detections(ground_truth, detections, "segm").save_numbers(folder / "report" / "masks", settings)
    rows = [f"{epoch},{10 * epoch + 9},{3 - epoch},{epoch / 9},{epoch / 10}" for epoch in range(3)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,step,train/loss,val/AP,val/mask_AP", *rows]))
    return folder


def picture(is_worst: bool) -> dict:
    """An image with one object, which is found, and one detection, which is wrong."""
    uri = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw=="
    return {
        "name": HOSTILE,
        "width": 100,
        "height": 80,
        "is_worst": is_worst,
        "id": 0,
        "error": 0.5,
        "false": 1,
        "missed": 0,
        "objects": [[10, 10, 20, 20, True, HOSTILE, 0, ""]],
        "detections": [[70, 10, 20, 20, False, HOSTILE, 0, HOSTILE]],
        "pictures": [uri],
    }


def texts(browser, selector):
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.textContent)")


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_run(browser, run, tmp_path, width):
    page = tmp_path / "index.html"
    save_page([run], page, {"bbox": [picture(True), picture(False)], "segm": [picture(True)]})
    browser.open(page, width)
    report = json.loads((run / "report" / "masks" / "report.json").read_text())
    assert texts(browser, "#findings li") == report["findings"]
    sections = ["What is wrong", "Numbers", "Classes", "Curves", "Error by class", "Kinds of error", "Scores"]
    assert texts(browser, "h2") == [*sections, "Training", "Images"]
    assert texts(browser, "dd:not(.range)") == [
        f"{100 * report['summary'][name]:.1f}"
        for name in ("AP", "AP50", "AP75", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn")
    ]
    assert browser.run("document.documentElement.scrollWidth") <= width
    ap = report["intervals"]["AP"]
    assert texts(browser, "dd.range")[0] == f"{100 * ap['low']:.1f} – {100 * ap['high']:.1f}"
    assert browser.run("document.querySelectorAll('.pictures figure').length") == 1
    browser.run("[...document.querySelectorAll('#kinds button')].find(button => button.value === 'bbox').click()")
    assert texts(browser, "#findings li") == json.loads((run / "report" / "report.json").read_text())["findings"]
    assert browser.run("document.querySelectorAll('.pictures figure').length") == 2
    assert HOSTILE in texts(browser, "h1")
    assert HOSTILE in texts(browser, "#s2 tbody th")
    assert browser.run("document.images.length") == 0
    assert browser.complaints == []
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@in_browser
def test_a_click_on_a_class_or_on_two_that_are_confused_shows_images(browser, tmp_path):
    ground_truth, detections = random_masks(2)
    for row in ground_truth["categories"]:
        row["name"] = f"{HOSTILE} {row['id']}"
    for n, row in enumerate(detections):
        row["score"] = 1 - n / 100
    instead = [
        {**row, "category_id": 3 - row["category_id"], "score": 0.995} for row in ground_truth["annotations"][:6]
    ]
    evaluate_detections(ground_truth, detections + instead).save_numbers(tmp_path, {})
    errors = json.loads((tmp_path / "report.json").read_text())["errors"]
    pair = next(pair for pair in errors["pairs"] if pair["images"])
    shown = [{**picture(None), "id": id} for id in (0, 5, 42)]
    save_page([tmp_path], tmp_path / "index.html", {"bbox": shown})
    browser.open(tmp_path / "index.html", 390)
    assert browser.run("document.querySelectorAll('.panel:not(:empty)').length") == 0
    for row, images in zip(errors["per_class"], errors["worst_images"], strict=True):
        name = json.loads((tmp_path / "report.json").read_text())["per_class"][errors["per_class"].index(row)]["class"]
        browser.run(
            f"[...document.querySelectorAll('#s2 tbody button')].find(b => b.textContent === {json.dumps(name)}).click()"
        )
        assert texts(browser, "#s2 .panel tbody td:nth-child(2)") == [str(number) for number in row]
        assert len(texts(browser, "#s2 .panel figure")) == len(images)
    browser.run("document.querySelector('#s5 .plain button').click()")
    assert texts(browser, "#s5 .panel h3") == [f"{pair['object']} mistaken for {pair['detected']}"]
    assert len(texts(browser, "#s5 .panel figure")) == len(pair["images"])
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.complaints == []


@in_browser
def test_every_column_sorts_both_ways(browser, tmp_path):
    ground_truth, detections = random_masks(3)
    ground_truth["categories"][2]["name"] = "a class of which nothing is found"
    crowdless = {**ground_truth["annotations"][0], "id": 999, "category_id": 7, "iscrowd": 0}
    ground_truth["annotations"].append(crowdless)
    report = evaluate_detections(ground_truth, detections)
    report.save(tmp_path)
    browser.open(tmp_path / "index.html")
    names = ("class", "objects", "AP", "AP50", "oLRP", "oLRP_loc", "oLRP_fp", "oLRP_fn", "oLRP_threshold")
    rows = json.loads((tmp_path / "report.json").read_text())["per_class"]
    for column, name in enumerate(names):
        head = f"document.querySelectorAll('#s2 thead th')[{column}]"
        seen = set()
        for _ in range(2):
            browser.run(f"{head}.querySelector('button').click()")
            falling = browser.run(f"{head}.getAttribute('aria-sort')") == "descending"
            seen.add(falling)
            known = sorted((row for row in rows if row[name] is not None), key=lambda row: row[name], reverse=falling)
            unknown = [row for row in rows if row[name] is None]
            expected = [row[name] for row in [*known, *unknown]]
            of_class = {row["class"]: row[name] for row in rows}
            assert [of_class[text] for text in texts(browser, "#s2 tbody th")] == expected
        assert seen == {True, False}
    assert "Training: there is no metrics.csv of a training run." in texts(browser, "main li")
    assert browser.complaints == []


@in_browser
def test_curves_of_a_class(browser, run, tmp_path):
    save_page([run], tmp_path / "index.html")
    browser.open(tmp_path / "index.html")
    before = texts(browser, "#s3 .legend li")
    assert before[0] == "IoU ≥ .5"
    row = json.loads((run / "report" / "masks" / "report.json").read_text())["per_class"][1]
    browser.run(
        "(choice => { choice.selectedIndex = [...choice.options].findIndex(option => option.text === "
        f"{json.dumps(row['class'])}); choice.dispatchEvent(new Event('change')); }})(document.querySelector('#s3 select'))"
    )
    optimum = f"optimum: {100 * row['oLRP']:.1f} at score {row['oLRP_threshold']:.3g}"
    assert optimum in texts(browser, "#s3 .legend li")
    assert browser.complaints == []


@in_browser
def test_two_runs_side_by_side(browser, run, tmp_path):
    ground_truth, detections = random_masks(2)
    ground_truth["categories"][0]["name"] = HOSTILE
    better = copy.deepcopy([d for d in detections if d["score"] >= 0.3])
    report = evaluate_detections(ground_truth, better, "segm")
    report.save_numbers(tmp_path / "other", {"recipe": "other", "epochs": "3"})
    save_page([run, tmp_path / "other"], tmp_path / "comparison.html")
    browser.open(tmp_path / "comparison.html")
    before = json.loads((run / "report" / "masks" / "report.json").read_text())["summary"]["AP"]
    change = f"{100 * (report.summary['AP'] - before):+.1f}".replace("-", "−")
    assert f"AP {100 * before:.1f} → {100 * report.summary['AP']:.1f} ({change})" in texts(browser, "#findings li")[0]
    heads = texts(browser, "#s2 thead th")
    assert [head.strip(" ▾") for head in heads[:5]] == ["class", "objects", "AP A", "AP B", "Δ AP B"]
    assert texts(browser, ".differs th") == ["recipe"]
    browser.run("[...document.querySelectorAll('#kinds button')].find(button => button.value === 'bbox').click()")
    assert browser.complaints == []


def test_ids_that_javascript_would_round(tmp_path):
    ids = [2**60 + n for n in range(4)]
    box = {"category_id": 2**70 + 1, "bbox": [10, 10, 40, 40]}
    ground_truth = {
        "images": [{"id": id} for id in ids],
        "categories": [{"id": 2**70 + 1, "name": "cell"}],
        "annotations": [{**box, "id": n, "image_id": id} for n, id in enumerate(ids)],
    }
    report = evaluate_detections(ground_truth, [{**box, "image_id": ids[0], "score": 0.5}])
    report.save_numbers(tmp_path)
    save_page([tmp_path], tmp_path / "index.html", {"bbox": [{**picture(True), "id": id} for id in ids]})
    data = (tmp_path / "index.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    (run,) = json.loads(data, parse_int=float)["runs"]  # as JavaScript does
    (evaluation,) = run["evaluations"]
    assert [shown["id"] for shown in evaluation["pictures"]] == list(map(str, ids))
    assert [id for id, *_ in evaluation["errors"]["worst_images"][0]] == list(map(str, ids[1:]))
    assert evaluation["per_class"][0]["category_id"] == str(2**70 + 1)


def test_runs_without_a_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no report in"):
        save_page([tmp_path], tmp_path / "page.html")
    (tmp_path / "report.json").write_text("[1")
    with pytest.raises(ValueError, match=r"report\.json is not a ranksort report"):
        save_page([tmp_path], tmp_path / "page.html")
    (tmp_path / "report.json").write_text('{"settings": {}, "per_class": []}')
    with pytest.raises(ValueError, match="has no findings, scores: it was written by an older version"):
        save_page([tmp_path], tmp_path / "page.html")


@pytest.mark.filterwarnings("ignore:Some errors were detected")
def test_training_curves_of_a_file_cut_off(run):
    with (run / "metrics.csv").open("a") as file:
        file.write("\n3,39,,0.5,\n4,49,x,nan,0.5\n5,5")
    curves = _training_curves(run / "metrics.csv")
    assert curves["train/loss"] == [(10, 3), (20, 2), (30, 1)]
    assert curves["val/AP"] == [(10, 0), (20, 0.1111), (30, 0.2222), (40, 0.5)]
    assert curves["val/mask_AP"][-1] == (50, 0.5)
    (run / "metrics.csv").write_text("")
    assert _training_curves(run / "metrics.csv") == _training_curves(run / "other.csv") == {}


@in_browser
@pytest.mark.parametrize("found", ["nothing", "wrong", "everything"])
def test_the_page_of_extremes(browser, tmp_path, found):
    ground_truth, detections = random_masks(2)
    perfect = [{**a, "score": 0.9} for a in ground_truth["annotations"] if not a["iscrowd"]]
    wrong = [{**d, "bbox": [80, 80, 3, 3], "score": 0.0} for d in detections]
    report = evaluate_detections(ground_truth, {"nothing": [], "wrong": wrong, "everything": perfect}[found])
    report.save(tmp_path)
    browser.open(tmp_path / "index.html")
    said = texts(browser, "#findings li")[0]
    assert said.startswith("No errors: all" if found == "everything" else "No true positives: none of the")
    assert ("Scores: nothing was detected." in texts(browser, "main li")) == (found == "nothing")
    assert "NaN" not in browser.run("document.body.innerHTML")
    assert browser.complaints == []
