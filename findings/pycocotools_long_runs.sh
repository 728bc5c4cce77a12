#!/usr/bin/env bash
# Tool: pycocotools 2.0.11 with numpy 2.4.6.
#
# Behaviour: a mask whose run is about 2^29 pixels longer than the one after the next comes back from its own compressed string with other
# runs: the area of such a mask is twice as large. There is no error.
#
# Expected: the area that was encoded. Images of whole microscope slides have more than 2^29 pixels (23,170 x 23,170).
#
# Output seen:
#   runs 1, 536870812, 5, 2: area 536870814, expected 536870814
#   runs 1, 536870915, 5, 2: area 1073741829, expected 536870917
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6 || exit 2

cat > case.py <<'EOP'
import sys

from pycocotools import mask

is_right = []
for run in (2**29 - 100, 2**29 + 3):
    runs = [1, run, 5, 2]
    rle = mask.frPyObjects({"size": [1, sum(runs)], "counts": runs}, 1, sum(runs))
    area = int(mask.area(rle))
    print(f"runs {', '.join(map(str, runs))}: area {area}, expected {run + 2}")
    is_right.append(area == run + 2)
sys.exit(0 if is_right == [True, False] else 1)
EOP
env -u PYTHONPATH env/bin/python case.py
