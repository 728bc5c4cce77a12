#!/usr/bin/env bash
# Tool: datumaro 1.13.12 (with pycocotools 2.0.11 to evaluate the result).
#
# Behaviour: an object that is a mask is written to COCO instances either as a crowd or with edge pixels missing.
# Without an is_crowd attribute every mask gets iscrowd 1. With is_crowd False it is turned into a polygon through the
# centres of its border pixels, which covers one row and one column of pixels less than the mask.
#
# Expected: iscrowd 0 and the same pixels. The COCO data format uses iscrowd 1 for regions that stand for a group of
# objects; pycocotools leaves such regions out of the score and trainers leave them out of the targets, so the whole
# dataset has no object. A run-length mask with iscrowd 0 is valid and would keep both.
#
# Output seen: iscrowd [1, 1], AP -1.0 for perfect detections; the other way 200 pixels become 171.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check datumaro==1.13.12 pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import contextlib
import io
import json
import sys

import datumaro as dm
import numpy as np
from datumaro.components.annotation import Mask
from datumaro.components.media import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

cat = np.zeros((40, 60), bool)
cat[5:15, 10:30] = True
dog = np.zeros((40, 60), bool)
dog[20:36, 35:50] = True


def export(folder, **attributes):
    masks = [Mask(cat, label=0, attributes=attributes), Mask(dog, label=1, attributes=attributes)]
    media = Image.from_numpy(data=np.full((40, 60, 3), 128, np.uint8))
    items = [dm.DatasetItem(id="one", media=media, annotations=masks)]
    dm.Dataset.from_iterable(items, categories=["cat", "dog"]).export(folder, "coco_instances")
    path = f"{folder}/annotations/instances_default.json"
    with open(path) as file:
        return path, json.load(file)["annotations"]


path, annotations = export("plain")
crowds = [annotation["iscrowd"] for annotation in annotations]
coco = COCO(path)
perfect = [
    {"image_id": 1, "category_id": annotation["category_id"], "score": 0.9, "segmentation": coco.annToRLE(annotation)}
    for annotation in annotations
]
evaluation = COCOeval(coco, coco.loadRes(perfect), "segm")
evaluation.evaluate()
evaluation.accumulate()
with contextlib.redirect_stdout(io.StringIO()):
    evaluation.summarize()
print("no attribute: iscrowd", crowds, "AP of perfect detections", evaluation.stats[0])

path, annotations = export("not_crowd", is_crowd=False)
coco = COCO(path)
written = coco.annToMask(annotations[0]).astype(bool)
overlap = (written & cat).sum() / (written | cat).sum()
print("is_crowd False: iscrowd", annotations[0]["iscrowd"], "segmentation", annotations[0]["segmentation"])
print("pixels of the mask", cat.sum(), "after export", written.sum(), "area", annotations[0]["area"], "IoU", round(overlap, 3))
sys.exit(0 if crowds == [1, 1] and evaluation.stats[0] == -1 and cat.sum() == 200 and written.sum() == 171 else 1)
EOF
env/bin/python -W ignore case.py
