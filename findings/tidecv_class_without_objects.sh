#!/usr/bin/env bash
# Tool: tidecv 1.0.1 (TIDE), with pycocotools 2.0.11 for comparison.
#
# Behaviour: a class of which the data has no object enters the mean with AP 0 as soon as there is one detection of it,
# whatever its score. The mAP falls with the number of such classes.
#
# Expected: the mean over the classes that have objects. The AP of a class without objects is not defined; pycocotools
# gives -1 for it and leaves it out. This is the usual case when a detector for COCO's 80 classes is evaluated on a part of
# the images. The errors that TIDE reports are differences of this mAP, so they are diluted as well.
#
# Output seen: AP at IoU .5 of a detector that finds the only object of one class of three: 100.0; with one detection of
# score 0.01 in each of the other two classes 33.3, where pycocotools says 100.0 in both cases.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check tidecv==1.0.1 pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import contextlib
import io
import json
import sys

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tidecv import TIDE, datasets

truth = {
    "images": [{"id": 1, "file_name": "one.jpg", "width": 200, "height": 200}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [10, 10, 50, 50], "area": 2500,
         "segmentation": [[10, 10, 60, 10, 60, 60, 10, 60]]},
    ],
}
cat = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 50, 50], "score": 0.9}
others = [{"image_id": 1, "category_id": n, "bbox": [100, 100, 50, 50], "score": 0.01} for n in (2, 3)]
with open("truth.json", "w") as file:
    json.dump(truth, file)


def aps(detections):
    with open("found.json", "w") as file:
        json.dump(detections, file)
    run = TIDE().evaluate(datasets.COCO("truth.json"), datasets.COCOResult("found.json"), mode=TIDE.BOX)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO("truth.json")
        evaluation = COCOeval(coco, coco.loadRes("found.json"), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(run.ap, 1), round(100 * float(evaluation.stats[1]), 1)


seen = [aps([cat]), aps([cat, *others])]
for what, (tide, coco) in zip(("the cat alone", "and a dog and a cow of score 0.01"), seen):
    print(f"{what}: AP50 by TIDE {tide}, by pycocotools {coco}")
sys.exit(0 if seen == [(100.0, 100.0), (33.3, 100.0)] else 1)
EOF
env/bin/python -W ignore case.py
