#!/usr/bin/env bash
# Tool: globox 2.9.0, its COCO evaluation; pycocotools 2.0.11 for the value by COCO's rules.
#
# Behaviour: crowd regions of a COCO file are read as ordinary objects. They have to be found like any other, and
# detections inside them count as false. `area` of the file is not used either: the size groups go by the box.
#
# Expected: COCO's rules, since the result is printed as "COCO Evaluation" with the standard metrics: a crowd region
# counts neither as an object nor, for the detections inside it, as an error. By hand: one ordinary object, found; both
# other detections lie inside the crowd region and are left out; AP = 1.
#
# Output seen: AP 0.168 against pycocotools' 1.0; the crowd flag is also gone (iscrowd 0) when the file is saved again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check globox==2.9.0 pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import contextlib
import io
import json
import sys
from pathlib import Path

import globox
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

truth = {
    "images": [{"id": 1, "file_name": "one.jpg", "width": 200, "height": 200}],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 10000, "iscrowd": 1, "segmentation": []},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [120, 120, 50, 50], "area": 2500, "iscrowd": 0, "segmentation": []},
    ],
}
detections = [
    {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.95},
    {"image_id": 1, "category_id": 1, "bbox": [50, 50, 20, 20], "score": 0.94},
    {"image_id": 1, "category_id": 1, "bbox": [120, 120, 50, 50], "score": 0.9},
]
Path("truth.json").write_text(json.dumps(truth))
Path("detections.json").write_text(json.dumps(detections))

objects = globox.AnnotationSet.from_coco(Path("truth.json"))
found = objects.from_results(Path("detections.json"))
with contextlib.redirect_stderr(io.StringIO()):
    by_globox = float(globox.COCOEvaluator(ground_truths=objects, predictions=found).ap())
objects.save_coco(Path("again.json"), auto_ids=True)
flags = [annotation["iscrowd"] for annotation in json.loads(Path("again.json").read_text())["annotations"]]

with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO("truth.json")
    evaluation = COCOeval(coco, coco.loadRes("detections.json"), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
by_coco = round(float(evaluation.stats[0]), 3)
print("AP by globox", round(by_globox, 3), "by pycocotools", round(by_coco, 3), "iscrowd after saving", flags)
sys.exit(0 if by_globox < 0.2 and by_coco == 1 and flags == [0, 0] else 1)
EOF
env/bin/python -W ignore case.py
