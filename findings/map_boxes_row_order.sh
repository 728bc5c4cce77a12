#!/usr/bin/env bash
# Tool: map-boxes 1.0.6 (with pycocotools 2.0.11 for comparison).
#
# Behaviour: the AP depends on the order in which the detections are listed. Within an image they are matched in that
# order, not by score: a poor box of low score that is listed first takes the object, and the good box of high score counts
# as false.
#
# Expected: the same AP for every order. Average precision is defined by the ranking by score, and the best detections
# choose first (so do Pascal VOC's and COCO's evaluation). Files sorted by image and position, or written by a detector in
# the order of its pyramid levels, are not in the order of scores.
#
# Output seen: AP 1.0 with the best detection first, 0.667 for the same detections with it in the second row; pycocotools
# says 1.0 for both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check map-boxes==1.0.6 pandas==3.1.1 pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import contextlib
import io
import json
import sys

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

with contextlib.redirect_stdout(io.StringIO()):
    from map_boxes import mean_average_precision_for_boxes

OBJECTS = [(1, 10, 10, 50, 50), (2, 10, 10, 50, 50)]  # image, x1, y1, x2, y2
FOUND = [(1, 0.9, 10, 10, 50, 50), (1, 0.2, 10, 10, 50, 46), (2, 0.8, 10, 10, 50, 50)]  # image, score, x1, y1, x2, y2


def by_map_boxes(found):
    truth = [[str(image), "cat", x1 / 100, x2 / 100, y1 / 100, y2 / 100] for image, x1, y1, x2, y2 in OBJECTS]
    rows = [[str(image), "cat", score, x1 / 100, x2 / 100, y1 / 100, y2 / 100] for image, score, x1, y1, x2, y2 in found]
    mean, _ = mean_average_precision_for_boxes(np.array(truth, object), np.array(rows, object), verbose=False)
    return round(float(mean), 3)


def by_pycocotools(found):
    truth = {
        "images": [{"id": image, "file_name": f"{image}.jpg", "width": 100, "height": 100} for image in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": 1, "iscrowd": 0, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1600}
            for n, (image, x1, y1, x2, y2) in enumerate(OBJECTS, 1)
        ],
    }
    rows = [
        {"image_id": image, "category_id": 1, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for image, score, x1, y1, x2, y2 in found
    ]
    with open("truth.json", "w") as file:
        json.dump(truth, file)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO("truth.json")
        evaluation = COCOeval(coco, coco.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[1]), 3)


seen = []
for order in ([0, 1, 2], [1, 0, 2]):
    found = [FOUND[n] for n in order]
    seen.append((by_map_boxes(found), by_pycocotools(found)))
    print("scores listed as", [row[1] for row in found], "AP50 by map-boxes", seen[-1][0], "by pycocotools", seen[-1][1])
sys.exit(0 if seen == [(1.0, 1.0), (0.667, 1.0)] else 1)
EOF
env/bin/python -W ignore case.py
