#!/usr/bin/env bash
# Tool: torchmetrics 1.9.0 with torch 2.14.1, torchvision 0.29.1 and pycocotools 2.0.11 as its engine.
#
# Behaviour: MeanAveragePrecision hands pycocotools its ten IoU thresholds as 32-bit numbers. 0.6, 0.8 and 0.85 become
# slightly more than that, so a detection whose IoU is exactly 0.6 or 0.8 fails that threshold, and the mAP is lower
# than pycocotools' own for the same boxes.
#
# Expected: the same value as pycocotools with its own thresholds, since it is the engine used. By hand: an object of
# 100 x 100 and a detection of 100 x 60 inside it have IoU 0.6, which reaches 0.5, 0.55 and 0.6, so AP = 0.3. Boxes of
# whole pixels often have such round overlaps, above all in small hand-made tests.
#
# Output seen: 0.2 against 0.3 for IoU 0.6, and 0.6 against 0.7 for IoU 0.8. Equal for 0.5 and 0.7.
# Takes about 3 minutes and several gigabytes of temporary space, nearly all of it for installing torch.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 torchmetrics==1.9.0 \
    pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import contextlib
import io
import json
import sys

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision


def by_torchmetrics(height):
    metric = MeanAveragePrecision(box_format="xywh")
    label = torch.tensor([1])
    detection = {"boxes": torch.tensor([[0.0, 0.0, 100.0, height]]), "scores": torch.tensor([0.9]), "labels": label}
    metric.update([detection], [{"boxes": torch.tensor([[0.0, 0.0, 100.0, 100.0]]), "labels": label}])
    return round(float(metric.compute()["map"]), 3)


def by_pycocotools(height):
    truth = {
        "images": [{"id": 1, "file_name": "one.jpg", "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 10000, "iscrowd": 0}],
    }
    with open("truth.json", "w") as file:
        json.dump(truth, file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO("truth.json")
        detections = coco.loadRes([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, height], "score": 0.9}])
        evaluation = COCOeval(coco, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 3)


print("thresholds", MeanAveragePrecision().iou_thresholds)
values = {height: (by_torchmetrics(height), by_pycocotools(height)) for height in (50, 60, 70, 80)}
for height, (metrics, tools) in values.items():
    print(f"IoU {height / 100}: mAP {metrics} by torchmetrics, {tools} by pycocotools")
stated = values == {50: (0.1, 0.1), 60: (0.2, 0.3), 70: (0.5, 0.5), 80: (0.6, 0.7)}
sys.exit(0 if stated else 1)
EOF
OMP_NUM_THREADS=1 env/bin/python -W ignore case.py
