#!/usr/bin/env bash
# Tool: dagshub-annotation-converter 0.3.0, a COCO file read and written again.
#
# Behaviour: every object that has a box and a polygon comes back as two annotations, one with only the box and one
# with only the polygon. The second has no `bbox` at all. A crowd region comes back as an ordinary object.
#
# Expected: as many objects as before, each with its box, polygon and iscrowd: the COCO data format lists them as
# fields of one annotation. A trainer sees each object twice, and the evaluation counts one of the two as missed.
#
# Output seen: 3 annotations become 5 with new ids; 2 of them have no bbox; iscrowd 1 becomes 0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check dagshub-annotation-converter==0.3.0 || exit 2

cat > case.py <<'EOF'
import itertools
import json
import sys

from dagshub_annotation_converter.converters.coco import export_to_coco_file, load_coco_from_file

before = [
    {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [10, 10, 20, 20], "area": 200, "segmentation": [[10, 10, 30, 10, 30, 30]]},
    {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [50, 50, 20, 20], "area": 400, "segmentation": [[50, 50, 70, 50, 70, 70, 50, 70]]},
    {"id": 3, "image_id": 1, "category_id": 1, "iscrowd": 1, "bbox": [50, 0, 3, 50], "area": 150,
     "segmentation": {"size": [100, 100], "counts": [5000, 50, 50, 50, 50, 50, 4750]}},
]
images = [{"id": 1, "file_name": "one.jpg", "width": 100, "height": 100}]
with open("before.json", "w") as file:
    json.dump({"images": images, "categories": [{"id": 1, "name": "person"}], "annotations": before}, file)

by_image, context = load_coco_from_file("before.json")
export_to_coco_file(list(itertools.chain.from_iterable(by_image.values())), "after.json", context)
with open("after.json") as file:
    after = json.load(file)["annotations"]
for annotation in after:
    print({key: annotation.get(key) for key in ("id", "bbox", "segmentation", "iscrowd")})
without_box = sum("bbox" not in annotation for annotation in after)
crowds = sum(annotation["iscrowd"] for annotation in after)
print(len(before), "annotations before,", len(after), "after,", without_box, "without bbox,", crowds, "crowd regions")
sys.exit(0 if (len(after), without_box, crowds) == (5, 2, 0) else 1)
EOF
env/bin/python -W ignore case.py 2>/dev/null
