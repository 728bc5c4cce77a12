import copy
import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ranksort import engine
from ranksort.checkpoints import load_model, read_checkpoint
from ranksort.evaluation.calibration_file import calibrate_rows
from ranksort.evaluation.model_scores import find_calibration, find_thresholds
from ranksort.evaluation.thresholds import Wish
from ranksort.interrupt import Terminated, exit_code
from ranksort.models import ATSS
from ranksort.recipes import Recipe
from ranksort.recipes.build import build_dataset, images_at_once, learning_rate, rate_factor

Undisturbed = Callable[[Recipe, Path], Path]


def raw(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_state(run: Path, other: Path) -> None:
    a, b = raw(run), raw(other)
    assert a["global_step"] == b["global_step"]
    assert a["ranksort"]["progress"] == b["ranksort"]["progress"]
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    momenta = zip(
        *(list(c["optimizer_states"][0]["state"].values()) for c in (a, b)),
        strict=True,
    )
    assert all(torch.equal(x["momentum_buffer"], y["momentum_buffer"]) for x, y in momenta)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def shown(report: Path) -> Any:
    """What the page of a report has been given to show of its only run."""
    page = (report / "index.html").read_text()
    (run,) = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["runs"]
    return run


def test_run_folder(tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = engine.train(tiny_recipe, tmp_path / "run")
    run = tmp_path / "run"
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert json.loads((run / "recipe.json").read_text()) == tiny_recipe.as_dict()
    assert any((run / "tensorboard").glob("events*"))
    (evaluation,) = shown(run / "report")["evaluations"]
    ranks = [picture["is_worst"] for picture in evaluation["pictures"]]
    assert [rank for rank in ranks if rank is not None] == [True, False]  # the others are shown where a class is chosen
    assert evaluation["settings"]["recipe"] == "tiny"
    assert [step for step, _ in shown(run / "report")["training"]["val/AP"]] == [6, 12]
    assert json.loads((run / "report" / "report.json").read_text())["summary"]["AP"] == report.as_dict()["AP"]
    logged = rows(run)
    assert [r["epoch"] for r in logged if r["val/oLRP"]] == ["0", "1"]
    assert {"train/ranking", "train/sorting", "train/box", "train/positives", "train/lr", "val/AP"} <= set(logged[0])
    (evaluated, _) = [row for row in logged if row["val/AP"]]
    parts = [float(evaluated[f"val/{name}"]) for name in ("ranking", "sorting", "box")]
    assert min(parts) > 0
    assert float(evaluated["val/loss"]) == pytest.approx(sum(parts), rel=1e-5)
    best = max(float(r["val/AP"]) for r in logged if r["val/AP"])
    assert report.as_dict()["AP"] == pytest.approx(best, abs=1e-6)
    out = capsys.readouterr().out
    assert (
        "epoch: 6 steps of 2 images\nlearning rate 0.01; warm-up over the first epoch instead of 500 steps; constant\n"
        in out
    )
    assert (
        "warning: it would drop after epochs 8 and 11, but the run ends with epoch 2: set --optimizer.milestones" in out
    )
    assert "of 8 classes" in out

    tested = engine.test(read_checkpoint(run), tmp_path / "tested")
    assert tested.as_dict() == pytest.approx(report.as_dict(), nan_ok=True)
    assert (tmp_path / "tested" / "report.json").is_file()
    model = load_model(run)
    assert not model.training
    assert list(model.class_names) == [category.name for category in build_dataset(tiny_recipe, "val").categories]


def test_scores_are_calibrated_and_cut_off(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_recipe.training.epochs, tiny_recipe.model.score_threshold = 1, 0.0
    run = tmp_path / "run"
    report = engine.train(tiny_recipe, run)
    assert report is not None
    assert "calibrated on other images" in capsys.readouterr().out
    trained = read_checkpoint(run)
    assert set(trained.scores) == {"thresholds", "iou", "precision"}
    assert trained.scores["iou"] == json.loads((run / "report" / "calibration.json").read_bytes())
    assert trained.scores["thresholds"] == json.loads((run / "report" / "thresholds.json").read_bytes())

    calibration = find_calibration(run, trained.scores, trained.categories)
    calibrated = engine.test(trained, tmp_path / "calibrated", calibration=calibration)
    assert calibrated is not None
    assert calibrated.as_dict() == pytest.approx(report.as_dict(), abs=1e-9, nan_ok=True)
    assert not (tmp_path / "calibrated" / "calibration.json").exists()
    out = capsys.readouterr().out
    assert "The scores are calibrated (expected IoU)." in out
    raw, worth = (
        json.loads((folder / "results_bbox.json").read_bytes()) for folder in (run / "report", tmp_path / "calibrated")
    )
    assert {row["calibrated"] for row in worth} == {"iou"}
    expected, unknown = calibrate_rows(calibration.calibrator, raw)
    assert unknown == 0
    key = json.dumps
    by_row = {key([row["image_id"], row["category_id"], row["bbox"]]): row["score"] for row in expected}
    assert len(by_row) == len(worth)
    assert {key([r["image_id"], r["category_id"], r["bbox"]]): r["score"] for r in worth} == pytest.approx(by_row)

    thresholds, out_folder = find_thresholds(run, {}, trained.categories), tmp_path / "cut"
    cut = engine.test(trained, out_folder, thresholds=thresholds, score_threshold=Wish("lrp"), calibration=calibration)
    assert cut is not None
    of_report = {row["category_id"]: row for row in report.per_class}
    for row in cut.per_class:
        if not np.isnan(of_report[row["category_id"]]["oLRP_threshold"]):
            # The scores of an untrained model are so close together that `lowered` lets in more of them.
            assert row["LRP"] == pytest.approx(of_report[row["category_id"]]["oLRP"], abs=1e-3)
            assert row["recall"] == pytest.approx(1 - of_report[row["category_id"]]["oLRP_fn"])
    assert "at these thresholds" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"is for scores that were calibrated .* and cut off at lrp"):
        find_thresholds(out_folder / "m.safetensors", {}, trained.categories)


def test_a_threshold_above_the_scores_is_named(
    tiny_recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_recipe.training.epochs = 1
    val_set = build_dataset(tiny_recipe, "val")
    assert val_set.file is not None
    wanted = int((~val_set.file.annotations.crowd).sum())
    for threshold, hint in ((0.999, f"only 0 detections for {wanted} objects"), (0.001, "")):
        tiny_recipe.model.score_threshold = threshold
        engine.train(tiny_recipe, tmp_path / f"{threshold}")
        trained = capsys.readouterr().out
        engine.test(read_checkpoint(tmp_path / f"{threshold}"), tmp_path / f"tested {threshold}")
        for out in (trained, capsys.readouterr().out):
            assert hint in out
            assert ("--model.score-threshold" in out) == bool(hint)


def test_masks_are_trained_evaluated_and_reported(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """On images without objects and with crowds, too."""
    tiny_recipe.model.detector, tiny_recipe.model.score_threshold = "mask_rcnn", 0.005
    tiny_recipe.model.detections_per_image, tiny_recipe.model.proposals = 10, 100
    tiny_recipe.data.keep_empty_images = True
    tiny_recipe.training.epochs = 1
    run = tmp_path / "run"
    report = engine.train(tiny_recipe, run)
    assert report.iou_type == "segm"
    for folder, iou_type in (("report", "bbox"), ("report/masks", "segm")):
        assert json.loads((run / folder / "report.json").read_text())["iou_type"] == iou_type
    boxes, masks = shown(run / "report")["evaluations"]
    assert (boxes["iou_type"], masks["iou_type"]) == ("bbox", "segm")
    assert {len(picture["pictures"]) for picture in boxes["pictures"]} == {1}
    assert {len(picture["pictures"]) for picture in masks["pictures"]} == {2}
    results = [json.loads((run / "report" / f"results_{kind}.json").read_bytes()) for kind in ("bbox", "segm")]
    assert len(results[0]) == len(results[1]) > 0
    assert results[1][0].keys() == {"image_id", "category_id", "score", "segmentation"}
    (logged,) = [row for row in rows(run) if row["val/AP"]]
    assert float(logged["val/mask_oLRP"]) == pytest.approx(report.as_dict()["oLRP"], abs=1e-6)
    assert {"train/mask", "train/rpn_ranking"} <= set(logged)


def test_three_epochs_are_two_and_one_resumed(tiny_recipe: Recipe, tmp_path: Path, undisturbed: Undisturbed) -> None:
    tiny_recipe.training.epochs = 3
    engine.train(tiny_recipe, tmp_path / "whole")
    tiny_recipe.training.epochs = 2
    undisturbed(tiny_recipe, tmp_path / "parts")
    tiny_recipe.training.epochs = 3
    engine.train(tiny_recipe, tmp_path / "parts", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_the_state_of_a_loss_is_saved_and_resumed(tiny_recipe: Recipe, tmp_path: Path) -> None:
    """aLRP Loss weights its parts by the epoch before."""
    tiny_recipe.model.loss = "average_lrp"
    engine.train(tiny_recipe, tmp_path / "whole")
    tiny_recipe.training.epochs = 1
    engine.train(tiny_recipe, tmp_path / "parts")
    tiny_recipe.training.epochs = 2
    engine.train(tiny_recipe, tmp_path / "parts", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    state = raw(tmp_path / "parts")["state_dict"]
    assert state["model.criterion.loss.localization_weight"] not in (1, 50)
    assert state["model.criterion.loss.iterations"] == 0  # an epoch has just ended
    assert {"train/classification", "train/box"} <= set(rows(tmp_path / "parts")[0])
    assert engine.test(read_checkpoint(tmp_path / "parts"), tmp_path / "tested").as_dict()["AP"] >= 0
    assert not load_model(tmp_path / "parts").training
    tiny_recipe.model.loss = "focal"
    with pytest.raises(ValueError, match=r"a different --model\.loss \(average_lrp before, focal now\)"):
        engine.train(tiny_recipe, tmp_path / "parts", resume=True)


@pytest.mark.parametrize(
    ("batch", "workers", "number"), [(1, 0, signal.SIGTERM), (8, 2, signal.SIGINT), (12, 0, signal.SIGHUP)]
)
def test_interrupted_and_resumed_is_not_interrupted(
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: Undisturbed,
    batch: int,
    workers: int,
    number: signal.Signals,
) -> None:
    """A signal in the first batch, in the middle of the second epoch, and in the last batch of an epoch."""
    tiny_recipe.data.workers = workers
    undisturbed(tiny_recipe, tmp_path / "whole")
    steps = raw(tmp_path / "whole")["global_step"]
    assert steps == 12
    forward, calls = ATSS.forward, []

    def interrupted(self: ATSS, *args: Any) -> Any:
        calls.append(self.training)
        if sum(calls) == batch and self.training:
            os.kill(os.getpid(), number)
        return forward(self, *args)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        patch.setattr(ATSS, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            engine.train(tiny_recipe, tmp_path / "parts")
    assert exit_code(stopped.value) == 128 + number
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    assert f"to continue: ranksort train {tmp_path / 'parts'} --resume" in capsys.readouterr().out
    assert raw(tmp_path / "parts")["global_step"] == batch
    engine.train(tiny_recipe, tmp_path / "parts", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_interrupted_evaluation_is_finished(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Undisturbed
) -> None:
    forward = ATSS.forward

    def interrupted(self: ATSS, *args: Any) -> Any:
        if not self.training and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args)

    undisturbed(tiny_recipe, tmp_path / "whole")
    sent: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(ATSS, "forward", interrupted)
        with pytest.raises(Terminated):
            engine.train(tiny_recipe, tmp_path / "parts")
    assert raw(tmp_path / "parts")["global_step"] == 6
    (tmp_path / "parts").rename(tmp_path / "moved")
    engine.train(tiny_recipe, tmp_path / "moved", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "moved")
    evaluated = [[row["val/AP"] for row in rows(tmp_path / name) if row["val/AP"]] for name in ("whole", "moved")]
    assert evaluated[0] == evaluated[1]
    for name in ("whole", "moved"):
        for epochs in (3, 4):
            tiny_recipe.training.epochs = epochs
            engine.train(tiny_recipe, tmp_path / name, resume=True)
    assert raw(tmp_path / "moved")["global_step"] == 24
    assert_same_state(tmp_path / "whole", tmp_path / "moved")


@pytest.mark.parametrize(("epoch", "ema_decay"), [(1, 0.9), (2, 0.0)])
def test_failed_evaluation_loses_no_epoch(
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Undisturbed,
    epoch: int,
    ema_decay: float,
) -> None:
    """It is repeated when the run is resumed, and nothing is trained twice."""
    tiny_recipe.training.ema_decay = ema_decay
    forward, evaluated = ATSS.forward, []

    def failing(self: ATSS, *args: Any) -> Any:
        evaluated.append(not self.training)
        if sum(evaluated) == 4 * epoch - 1:  # of four images
            raise RuntimeError("no space for this")
        return forward(self, *args)

    undisturbed(tiny_recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(ATSS, "forward", failing)
        with pytest.raises(RuntimeError, match="no space"):
            engine.train(tiny_recipe, tmp_path / "parts")
    assert raw(tmp_path / "parts")["global_step"] == 6 * epoch
    engine.train(tiny_recipe, tmp_path / "parts", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    aps = [[row["val/AP"] for row in rows(tmp_path / name) if row["val/AP"]] for name in ("whole", "parts")]
    assert aps[0] == aps[1]


def test_second_signal_stops_at_once(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, calls = ATSS.forward, []

    def interrupted(self: ATSS, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        calls.append(1)
        return forward(self, *args)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(ATSS, "forward", interrupted)
    with pytest.raises(Terminated):
        engine.train(tiny_recipe, tmp_path / "run")
    assert not calls
    assert signal.getsignal(signal.SIGINT) == handler
    assert f"to continue: ranksort train {tmp_path / 'run'} --resume" in capsys.readouterr().out
    assert raw(tmp_path / "run")["global_step"] == 0


def test_sigusr1_saves_and_goes_on(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward, steps = ATSS.forward, []

    def signalled(self: ATSS, *args: Any) -> Any:
        if self.training:
            steps.append(1)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            if len(steps) == 4:
                assert raw(tmp_path / "run")["global_step"] == 3
        return forward(self, *args)

    monkeypatch.setattr(ATSS, "forward", signalled)
    engine.train(tiny_recipe, tmp_path / "run")
    assert len(steps) == 12
    assert capsys.readouterr().out.count("wrote ") == 1


def test_resuming_with_moved_data(
    tiny_recipe: Recipe, tiny_data: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """The same images and objects anywhere else; other ones are refused."""
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data, moved)
    file = moved / "annotations" / "renamed.json"
    (moved / "annotations" / "instances_train.json").rename(file)
    tiny_recipe.training.epochs = 1
    run = undisturbed(tiny_recipe, tmp_path / "run")
    elsewhere = copy.deepcopy(tiny_recipe)
    elsewhere.data.root, elsewhere.data.train_annotations = str(moved), str(file)
    elsewhere.data.train_images = str(moved / "images")
    elsewhere.training.epochs = 2
    shutil.copytree(run, tmp_path / "old")
    shutil.copytree(run, tmp_path / "changed")
    engine.train(elsewhere, run, resume=True)
    tiny_recipe.training.epochs = 2
    undisturbed(tiny_recipe, tmp_path / "whole")
    assert_same_state(tmp_path / "whole", run)

    content = raw(tmp_path / "old")
    del content["ranksort"]["fingerprint"]
    torch.save(content, tmp_path / "old" / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"--data\.train-annotations"):
        engine.train(elsewhere, tmp_path / "old", resume=True)

    annotations = json.loads(file.read_text())
    next(a for a in annotations["annotations"] if not a["iscrowd"])["bbox"][2] -= 0.5
    file.write_text(json.dumps(annotations))
    with pytest.raises(ValueError, match=r"renamed\.json does not contain the images and objects that .*changed"):
        engine.train(elsewhere, tmp_path / "changed", resume=True)


def test_resuming_refuses_settings_that_would_not_take_effect(
    tiny_recipe: Recipe, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    tiny_recipe.training.epochs = 1
    undisturbed(tiny_recipe, tmp_path / "run")
    tiny_recipe.optimizer.lr = 1.0
    with pytest.raises(ValueError, match=r"--optimizer\.lr \(0\.01 before, 1\.0 now\)"):
        engine.train(tiny_recipe, tmp_path / "run", resume=True)


def test_bad_validation_data_stops_before_training(tiny_recipe: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_data / "annotations" / "instances_val.json").read_text())
    content["annotations"] = []
    (tmp_path / "empty.json").write_text(json.dumps(content))
    tiny_recipe.data.val_annotations = str(tmp_path / "empty.json")
    with pytest.raises(ValueError, match="nothing to be found"):
        engine.train(tiny_recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_file_which_names_fewer_classes(tiny_recipe: Recipe, tiny_data: Path, tmp_path: Path) -> None:
    """Detections of the others neither count nor disturb."""
    content = json.loads((tiny_data / "annotations" / "instances_val.json").read_text())
    kept = content["annotations"][0]["category_id"]
    for section, key in (("categories", "id"), ("annotations", "category_id")):
        content[section] = [row for row in content[section] if row[key] == kept]
    (tmp_path / "few.json").write_text(json.dumps(content))
    tiny_recipe.data.val_annotations = str(tmp_path / "few.json")
    tiny_recipe.model.score_threshold, tiny_recipe.training.epochs = 0.0, 1
    report = engine.train(tiny_recipe, tmp_path / "run")
    assert [row["category_id"] for row in report.per_class] == [kept]


def test_accumulation_is_the_larger_step(tiny_recipe: Recipe, tmp_path: Path) -> None:
    tiny_recipe.training.epochs, tiny_recipe.training.batch_size, tiny_recipe.training.accumulate = 1, 4, 2
    assert images_at_once(tiny_recipe) == 2
    assert learning_rate(tiny_recipe) == pytest.approx(0.02)
    engine.train(tiny_recipe, tmp_path / "run")
    assert raw(tmp_path / "run")["global_step"] == 3  # six batches of two


@pytest.mark.parametrize(
    ("group", "field", "value"), [("training", "precision", "bf16-mixed"), ("training", "ema_decay", 0.9)]
)
def test_options_train_and_resume(
    tiny_recipe: Recipe, tmp_path: Path, undisturbed: Undisturbed, group: str, field: str, value: Any
) -> None:
    setattr(getattr(tiny_recipe, group), field, value)
    tiny_recipe.training.epochs = 1
    engine.train(tiny_recipe, tmp_path / "run")
    tiny_recipe.training.epochs = 2
    engine.train(tiny_recipe, tmp_path / "run", resume=True)
    undisturbed(tiny_recipe, tmp_path / "whole")
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_a_loaded_backbone_may_learn_more_slowly(tiny_recipe: Recipe, tmp_path: Path, undisturbed: Undisturbed) -> None:
    tiny_recipe.training.epochs, tiny_recipe.optimizer.backbone_rate = 1, 0.1
    engine.train(tiny_recipe, tmp_path / "start")
    assert tiny_recipe.optimizer.backbone_rate == 1  # of random weights
    tiny_recipe.training.weights, tiny_recipe.optimizer.backbone_rate = str(tmp_path / "start"), 0.1
    engine.train(tiny_recipe, tmp_path / "run")
    rates = [group["initial_lr"] for group in raw(tmp_path / "run")["optimizer_states"][0]["param_groups"]]
    assert rates == pytest.approx([learning_rate(tiny_recipe), 0.1 * learning_rate(tiny_recipe)])
    tiny_recipe.training.epochs = 2
    engine.train(tiny_recipe, tmp_path / "run", resume=True)
    undisturbed(tiny_recipe, tmp_path / "whole")
    assert_same_state(tmp_path / "whole", tmp_path / "run")


def test_images_that_cannot_be_shared_out(tiny_recipe: Recipe) -> None:
    tiny_recipe.training.batch_size, tiny_recipe.training.devices = 6, 4
    with pytest.raises(ValueError, match=r"a batch of 6 images cannot be divided by 4 .*--training.batch-size"):
        images_at_once(tiny_recipe)


def test_no_data(tiny_recipe: Recipe, tmp_path: Path) -> None:
    tiny_recipe.data.root = ""
    with pytest.raises(ValueError, match=r"--data\.root"):
        engine.train(tiny_recipe, tmp_path)


def test_rate_factor() -> None:
    settings = Recipe("").optimizer
    step = rate_factor(settings, steps_per_epoch=1000, epochs=12)
    assert step(0) == pytest.approx(0.001)
    assert step(250) == pytest.approx(0.001 + 0.999 / 2)
    assert [step(s) for s in (500, 7999, 8000, 10999, 11000)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert rate_factor(settings, steps_per_epoch=10, epochs=12)(10) == 1  # the warm-up ends with the first epoch
    settings.schedule = "cosine"
    cosine = rate_factor(settings, steps_per_epoch=1000, epochs=12)
    assert [cosine(s) for s in (6000, 12000)] == pytest.approx([0.5, 0])
