#!/usr/bin/env bash
# Tool: pylabel 0.1.55, a COCO data set written in YOLO's format (ExportToYoloV5).
#
# Behaviour: the label files keep COCO's category ids as class numbers, while the YAML file lists the names from 0 on.
# COCO's own ids begin with 1, as do those of most tools, so each object gets the name of the next class, and those of the
# last class a number that the YAML file does not have.
#
# Expected: class numbers are positions in `names` (YOLO's format, and pylabel's own reader of it).
#
# Output seen: of a cat (category 1) and a dog (category 2) the label file has the classes 1 and 2, with names [cat, dog]:
# the cat has become a dog, and the dog a class that there is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check pylabel==0.1.55 || exit 2

cat > case.py <<'EOF'
import json
import os
import sys

import numpy as np
import yaml
from PIL import Image
from pylabel import importer

os.makedirs("coco")
os.makedirs("yolo/labels")
Image.fromarray(np.full((100, 100, 3), 128, np.uint8)).save("coco/one.jpg")
box = {"image_id": 1, "iscrowd": 0, "segmentation": []}
with open("coco/annotations.json", "w") as file:
    json.dump(
        {
            "images": [{"id": 1, "file_name": "one.jpg", "width": 100, "height": 100}],
            "categories": [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "dog", "supercategory": ""}],
            "annotations": [
                {"id": 1, "category_id": 1, "bbox": [10, 10, 40, 30], "area": 1200, **box},
                {"id": 2, "category_id": 2, "bbox": [50, 50, 20, 20], "area": 400, **box},
            ],
        },
        file,
    )

dataset = importer.ImportCoco("coco/annotations.json", path_to_images="")
dataset.export.ExportToYoloV5(output_path="yolo/labels", copy_images=True, yaml_file="dataset.yaml", use_splits=False)

with open("yolo/dataset.yaml") as file:
    names = yaml.safe_load(file)["names"]
with open("yolo/labels/one.txt") as file:
    classes = [int(line.split()[0]) for line in file]
print("names", names, "classes of the cat and the dog", classes)
sys.exit(0 if names == ["cat", "dog"] and classes == [1, 2] else 1)
EOF
env/bin/python -W ignore case.py
