#!/usr/bin/env bash
# Tool: coco-assistant 0.3.5, merging two COCO files.
#
# Behaviour: when the images of the first file are not listed in order of their ids, images of the second file get ids
# that the first already uses. The numbers of the second file continue from the last image (and annotation) listed in
# the first, not from the largest.
#
# Expected: ids unique in the merged file. The COCO data format refers from annotations to images by id only and says
# nothing about their order (COCO's own files list images unordered). Objects of one file now lie on images of the
# other, and readers that index by id keep only one of the two images.
#
# Output seen: image ids [9, 4, 7, 8, 9]; the image 9 of the first file and that of the second share a cat and a dog.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check coco-assistant==0.3.5 || exit 2

cat > case.py <<'EOF'
import contextlib
import io
import json
import os
import sys
from collections import Counter

import matplotlib

matplotlib.use("Agg")
from coco_assistant import COCO_Assistant

CATEGORIES = [{"id": 1, "name": "cat", "supercategory": ""}, {"id": 2, "name": "dog", "supercategory": ""}]


def write(name, image_ids, category):
    os.makedirs(f"images/{name}")
    os.makedirs("annotations", exist_ok=True)
    images = [{"id": i, "file_name": f"{name}_{i}.jpg", "width": 100, "height": 100} for i in image_ids]
    annotations = [
        {"id": number, "image_id": i, "category_id": category, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0, "segmentation": []}
        for number, i in enumerate(image_ids, 1)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": CATEGORIES}
    with open(f"annotations/{name}.json", "w") as file:
        json.dump(content, file)


write("first", [9, 4, 7], category=1)
write("second", [1, 2], category=2)
with contextlib.redirect_stdout(io.StringIO()):
    COCO_Assistant("images", "annotations").merge(merge_images=False)
with open("results/merged/annotations/merged.json") as file:
    merged = json.load(file)

ids = [image["id"] for image in merged["images"]]
repeated = [number for number, count in Counter(ids).items() if count > 1]
print("image ids", ids, "repeated", repeated)
for image in merged["images"]:
    names = [CATEGORIES[a["category_id"] - 1]["name"] for a in merged["annotations"] if a["image_id"] == image["id"]]
    print("   ", image["id"], image["file_name"], "has", names)
sys.exit(0 if ids == [9, 4, 7, 8, 9] and repeated == [9] else 1)
EOF
env/bin/python -W ignore case.py 2>/dev/null
