#!/usr/bin/env bash
# Tool: pycocotools 2.0.11 with numpy 2.4.6.
#
# Behaviour: `mask.area` of a list of 256 or more RLEs raises OverflowError ("Python integer 256 out of bounds for
# uint8"); of 255 it works. `mask.toBbox` of the same list works.
#
# Expected: an area for each mask. LVIS allows 300 detections an image, so a call with all masks of an image fails.
#
# Output seen: 255 masks: 255 areas; 256 masks: OverflowError; boxes of 256 masks: 256.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6 || exit 2

cat > case.py <<'EOP'
import sys

import numpy as np
from pycocotools import mask

rles = mask.encode(np.asfortranarray(np.ones((4, 4, 256), dtype=np.uint8)))
print("255 masks:", len(mask.area(rles[:255])), "areas")
try:
    print("256 masks:", len(mask.area(rles)), "areas")
    raised = False
except OverflowError as error:
    print("256 masks: OverflowError:", error)
    raised = True
print("boxes of 256 masks:", len(mask.toBbox(rles)))
sys.exit(0 if raised else 1)
EOP
env/bin/python case.py
