#!/usr/bin/env bash
# Tool: datumaro 1.13.12 (with pycocotools 2.0.11 as the reader of the result).
#
# Behaviour: a Pascal VOC dataset written as COCO instances gets the same annotation id several times. From the second
# object of an image on, the id is the object's position inside its image (1, 2, ...); the first object of each image
# gets a number from a counter that does not look at the ids already in use.
#
# Expected: one id per annotation in the whole file. The COCO data format defines `id` as the identifier of an
# annotation, and readers index by it: pycocotools keeps one annotation per id, so two of the four objects below cannot
# be reached, and asking for the first image's objects returns boxes of the second image. The exporter's option
# reindex=True writes unique ids; the default does not and prints no warning.
#
# Output seen: ids [1, 1, 2, 1], 2 annotations in pycocotools' index, and image 1 asked for gives image 2's box twice.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check datumaro==1.13.12 pycocotools==2.0.11 || exit 2

cat > case.py <<'EOF'
import json
import os
import sys
from collections import Counter

import datumaro as dm
import numpy as np
from PIL import Image
from pycocotools.coco import COCO

BOXES = {"one": [("cat", 10, 10, 40, 40), ("dog", 50, 50, 90, 80)], "two": [("dog", 5, 5, 25, 35), ("cat", 60, 20, 70, 50)]}
for folder in ("voc/Annotations", "voc/JPEGImages", "voc/ImageSets/Main"):
    os.makedirs(folder)
for stem, boxes in BOXES.items():
    Image.fromarray(np.full((100, 100, 3), 128, np.uint8)).save(f"voc/JPEGImages/{stem}.jpg")
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in boxes
    )
    with open(f"voc/Annotations/{stem}.xml", "w") as file:
        file.write(
            f"<annotation><filename>{stem}.jpg</filename><size><width>100</width><height>100</height><depth>3</depth></size>{objects}</annotation>"
        )
with open("voc/ImageSets/Main/train.txt", "w") as file:
    file.write("one\ntwo\n")

dataset = dm.Dataset.import_from("voc", "voc")
dataset.export("coco", "coco_instances")
dataset.export("coco_reindexed", "coco_instances", reindex=True)

with open("coco/annotations/instances_train.json") as file:
    content = json.load(file)
with open("coco_reindexed/annotations/instances_train.json") as file:
    reindexed = [annotation["id"] for annotation in json.load(file)["annotations"]]
for annotation in content["annotations"]:
    print("annotation", annotation["id"], "image", annotation["image_id"], "bbox", annotation["bbox"])
ids = [annotation["id"] for annotation in content["annotations"]]
repeated = [number for number, count in Counter(ids).items() if count > 1]
print("ids", ids, "repeated", repeated, "with reindex=True", reindexed)

coco = COCO("coco/annotations/instances_train.json")
print("annotations in the file", len(ids), "in pycocotools' index", len(coco.anns))
first = content["images"][0]["id"]
found = coco.loadAnns(coco.getAnnIds(imgIds=[first]))
print("asked for image", first, "got boxes of images", [annotation["image_id"] for annotation in found])
wrong_image = any(annotation["image_id"] != first for annotation in found)
sys.exit(0 if repeated and len(coco.anns) < len(ids) and wrong_image and len(set(reindexed)) == 4 else 1)
EOF
env/bin/python -W ignore case.py
