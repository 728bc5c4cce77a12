#!/usr/bin/env bash
# Tool: supervision 0.31.2, a YOLO polygon data set loaded and written as COCO.
#
# Behaviour: the `area` of an object is larger than its polygon, and larger even than its own box: the polygon is drawn
# with its right and bottom border pixels included, and the pixels are counted, while `bbox` and `segmentation` in the
# same annotation keep the vertices. An outline of 30 x 30 pixels gets area 961 and a box of 900.
#
# Expected: the area of the segmentation that is written, which is what `area` holds in COCO's own files and what the
# size groups of the evaluation go by: 900 here (pycocotools counts 900 pixels for it as well). The difference is about
# half the perimeter and moves objects between the groups, which are split at 32 x 32 = 1024: an object of 31.6 x 31.6
# pixels (998.56) is counted as medium instead of small.
#
# Output seen: area 961 for 900 and 1089 for 998.56, with both boxes right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check supervision==0.31.2 pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import json
import os
import sys

import numpy as np
import supervision as sv
from PIL import Image
from pycocotools import mask as masks

os.makedirs("images")
os.makedirs("labels")
Image.fromarray(np.full((100, 100, 3), 128, np.uint8)).save("images/one.jpg")
sides = [(0.1, 0.4), (0.5, 0.816)]
with open("labels/one.txt", "w") as file:
    for low, high in sides:
        file.write(f"0 {low} {low} {high} {low} {high} {high} {low} {high}\n")
with open("data.yaml", "w") as file:
    file.write("names: [cat]\nnc: 1\n")

dataset = sv.DetectionDataset.from_yolo("images", "labels", "data.yaml")
dataset.as_coco(annotations_path="coco.json")
with open("coco.json") as file:
    annotations = json.load(file)["annotations"]

areas = []
for annotation, (low, high) in zip(annotations, sides):
    box = annotation["bbox"]
    pixels = masks.area(masks.frPyObjects(annotation["segmentation"], 100, 100))[0]
    areas.append(annotation["area"])
    print(
        "outline", round((100 * (high - low)) ** 2, 2), "area", annotation["area"], "box", round(box[2] * box[3], 2),
        "pixels of the written segmentation", pixels,
    )
sys.exit(0 if areas == [961, 1089] else 1)
EOF
env/bin/python -W ignore case.py
