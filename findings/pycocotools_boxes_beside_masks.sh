#!/usr/bin/env bash
# Tool: pycocotools 2.0.11, mask results; faster-coco-eval 1.8.0 and hotcoco 1.3.0 behave alike.
#
# Behaviour: AP by size of masks depends on whether the rows of the results have a `bbox` beside the `segmentation`. With it,
# the area of the box is taken for the area of the detection, so a thin or slanted mask belongs to a larger size group than
# an object with the same mask. Only the first row is looked at: the same rows in another order can give another AP.
#
# Expected: masks are compared by their own areas, as those of the objects are, and boxes that are not compared change
# nothing. A detection that matches nothing counts as false only in its own size group.
#
# Output seen: a small object and a false detection of 240 pixels whose box has 3780: AP small 0.5 without boxes, 1.0 with
# boxes; and 0.5 again if the first row has none. AP over all sizes is 0.5 in all cases.
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
import numpy as np
from pycocotools import coco, cocoeval, mask

TOOLS = {
    "pycocotools": (coco.COCO, cocoeval.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}


def encoded(pixels):
    runs = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


line = np.zeros((200, 200), bool)
for n in range(60):
    line[10 + n, 10 + n : 14 + n] = True
square = np.zeros((200, 200), bool)
square[100:115, 100:115] = True
truth = {
    "images": [{"id": 1, "file_name": "one.jpg", "width": 200, "height": 200}],
    "categories": [{"id": 1, "name": "stick"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [100, 100, 15, 15], "area": 225,
         "segmentation": encoded(square)},
    ],
}
with open("truth.json", "w") as file:
    json.dump(truth, file)
rows = [
    {"image_id": 1, "category_id": 1, "score": score, "segmentation": encoded(pixels)}
    for score, pixels in ((0.9, line), (0.8, square))
]
boxed = [{**row, "bbox": mask.toBbox(row["segmentation"]).tolist()} for row in rows]


def aps(tool, found):
    reader, evaluator = TOOLS[tool]
    with open("found.json", "w") as file:
        json.dump(found, file)
    with contextlib.redirect_stdout(io.StringIO()):
        opened = reader("truth.json")
        evaluation = evaluator(opened, opened.loadRes("found.json"), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return round(float(evaluation.stats[0]), 3), round(float(evaluation.stats[3]), 3)


print("the line has", line.sum(), "pixels, its box", np.prod(boxed[0]["bbox"][2:]))
seen = set()
for tool in TOOLS:
    of_tool = tuple(aps(tool, found) for found in (rows, boxed, [rows[1], boxed[0]]))
    seen.add(of_tool)
    print(f"{tool}: AP and AP small without boxes {of_tool[0]}, with boxes {of_tool[1]}, first row without {of_tool[2]}")
sys.exit(0 if seen == {((0.5, 0.5), (0.5, 1.0), (0.5, 0.5))} else 1)
EOF
env/bin/python -W ignore case.py 2>/dev/null
