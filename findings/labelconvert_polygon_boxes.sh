#!/usr/bin/env bash
# Tool: label-convert 0.3.0, its command labelme_to_coco; pycocotools 2.0.11 to read the masks.
#
# Behaviour: the box of a polygon is taken from the smallest turned rectangle around it, as two of its corners, so it
# is not the box of the object. The outline is written as a list of points, one [x, y] pair each, instead of a list of
# polygons, so a reader sees one polygon of one point for each vertex.
#
# Expected: `bbox` is the upright box around the object, and `segmentation` a list of polygons [x1, y1, x2, y2, ...]
# (COCO data format). Rectangles of the same file are written that way.
#
# Output seen: for a diamond with corners (50, 10), (90, 50), (50, 90), (10, 50) the box [10, 50, 80, 0], of area 0,
# instead of [10, 10, 80, 80]; pycocotools does not accept the outline.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check label-convert==0.3.0 pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import json
import os
import subprocess
import sys

import cv2
import numpy as np
from pycocotools import mask as masks

diamond = [[50, 10], [90, 50], [50, 90], [10, 50]]
os.makedirs("labelme")
cv2.imwrite("labelme/one.jpg", np.full((100, 100, 3), 128, np.uint8))
shape = {"label": "sign", "points": diamond, "shape_type": "polygon", "group_id": None, "flags": {}}
with open("labelme/one.json", "w") as file:
    json.dump({"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": "one.jpg", "imageData": None, "imageHeight": 100, "imageWidth": 100}, file)
command = [os.path.join(os.path.dirname(sys.executable), "labelme_to_coco")]
subprocess.run([*command, "--data_dir", "labelme", "--save_dir", "coco", "--val_ratio", "0"], check=True, stdout=subprocess.DEVNULL)

with open("coco/annotations/instances_train2017.json") as file:
    annotation = json.load(file)["annotations"][0]
print("box", annotation["bbox"], "expected [10, 10, 80, 80]")
print("segmentation", annotation["segmentation"])
try:
    read = masks.area(masks.frPyObjects(annotation["segmentation"], 100, 100)).tolist()
except Exception as error:
    read = f"{type(error).__name__}: {error}"
print("read as", read, "with the outline as one flat list", masks.area(masks.frPyObjects([sum(diamond, [])], 100, 100)).tolist())
wrong_box = annotation["bbox"] != [10, 10, 80, 80]
sys.exit(0 if wrong_box and annotation["segmentation"] == diamond else 1)
EOF
env/bin/python -W ignore case.py
