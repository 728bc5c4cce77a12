#!/usr/bin/env bash
# Tool: pycocotools 2.0.11 and faster-coco-eval 1.8.0; hotcoco 1.3.0 for comparison.
#
# Behaviour: an object whose annotation id is 0 can never be found. The evaluation notes for each detection the id of
# the object it matched and takes 0 to mean "none", so the detection of that object is counted as false and the object
# as missed. One object of the file is lost; in a class with few objects that is a large part of the AP.
#
# Expected: 1.0 for perfect detections. The COCO data format asks for an integer id and does not exclude 0, and several
# exporters count from 0 (globox 2.9.0, pylabel 0.1.55 and label-studio-sdk 2.1.2 do). Neither tool warns.
#
# Output seen: AP 0.252 with ids 0 and 1, 1.0 with ids 1 and 2, for the same two boxes; hotcoco gives 1.0 for both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check pycocotools==2.0.11 faster-coco-eval==1.8.0 hotcoco==1.3.0 || exit 2

cat > case.py <<'EOF'
import contextlib
import io
import json
import sys

import faster_coco_eval
import hotcoco
from pycocotools import coco, cocoeval

BOXES = [[10, 10, 50, 50], [100, 100, 40, 40]]
with open("detections.json", "w") as file:
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score} for box, score in zip(BOXES, [0.9, 0.8])
    ]
    json.dump(detections, file)


def ap(reader, evaluator, first_id):
    objects = [
        {"id": first_id + i, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(BOXES)
    ]
    images = [{"id": 1, "file_name": "one.jpg", "width": 200, "height": 200}]
    with open("truth.json", "w") as file:
        json.dump({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}, file)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = reader("truth.json")
        evaluation = evaluator(truth, truth.loadRes("detections.json"), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 3)


found = {
    "pycocotools": [ap(coco.COCO, cocoeval.COCOeval, i) for i in (0, 1)],
    "faster-coco-eval": [ap(faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, i) for i in (0, 1)],
    "hotcoco": [ap(hotcoco.COCO, hotcoco.COCOeval, i) for i in (0, 1)],
}
for name, (from_zero, from_one) in found.items():
    print(f"{name}: AP {from_zero} with ids from 0, {from_one} with ids from 1")
lost = all(found[name][0] < 0.6 and found[name][1] == 1 for name in ("pycocotools", "faster-coco-eval"))
sys.exit(0 if lost and found["hotcoco"] == [1, 1] else 1)
EOF
env/bin/python -W ignore case.py
