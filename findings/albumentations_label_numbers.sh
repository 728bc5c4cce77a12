#!/usr/bin/env bash
# Tool: albumentations 2.0.8 (AlbumentationsX 2.5.1, which needs torch, gave the same numbers).
#
# Behaviour: numbers in `label_fields` come back as floats of 32-bit precision. Annotation ids above 2^24 = 16777216 are
# rounded to other numbers, without a warning. Strings come back as they were.
#
# Expected: labels as they were given. They are joined with the boxes, as the documentation says, so that they follow them; a
# flip gives no reason to change them. Ids go along to find the mask, the track or the row of a file that a box belongs to.
# COCO's own ids of crowd regions are above 9e11.
#
# Output seen: 908800474296 -> 908800491520.0, 16777217 -> 16777216.0, 123456789 -> 123456792.0, 1768 -> 1768.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check albumentations==2.0.8 || exit 2

cat > case.py <<'EOF'
import os
import sys

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A
import numpy as np

ids = [908800474296, 16777217, 123456789, 1768]
names = ["908800474296", "b", "c", "d"]
boxes = A.BboxParams(format="coco", label_fields=["ids", "names"])
flip = A.Compose([A.HorizontalFlip(p=1)], bbox_params=boxes)
after = flip(image=np.zeros((100, 100, 3), np.uint8), bboxes=[[10, 10, 20, 20]] * 4, ids=ids, names=names)
for before, number in zip(ids, after["ids"]):
    print(before, "->", number, type(number).__name__)
print(names, "->", list(after["names"]))
kept = list(after["names"]) == names
sys.exit(0 if kept and list(after["ids"]) == [908800491520.0, 16777216.0, 123456792.0, 1768.0] else 1)
EOF
env/bin/python -W ignore case.py
