#!/usr/bin/env bash
# Tool: mean-average-precision 2024.1.5.0, whose ground truth has a column `difficult`.
#
# Behaviour: an object marked as difficult counts as one to find, but finding it does not count. The detection that
# matches it is left out, while the number of objects that the recall is divided by includes it. Perfect detections cannot
# reach AP 1, and the AP falls with the share of difficult objects.
#
# Expected: what Pascal VOC means by the mark: the object is left out altogether, so that finding it or missing it changes
# nothing. Perfect detections have AP 1.0, as they have without the mark.
#
# Output seen: two objects, both found exactly: AP 1.0; 0.5 if one of them is difficult, found or not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check mean-average-precision==2024.1.5.0 || exit 2

cat > case.py <<'EOF'
import sys

import numpy as np
from mean_average_precision import MetricBuilder

# x1, y1, x2, y2, class, score
FOUND = np.array([[10, 10, 50, 50, 0, 0.9], [100, 100, 150, 150, 0, 0.8]])


def ap(found, difficult):
    metric = MetricBuilder.build_evaluation_metric("map_2d", async_mode=False, num_classes=1)
    # x1, y1, x2, y2, class, difficult, crowd
    metric.add(found, np.array([[10, 10, 50, 50, 0, 0, 0], [100, 100, 150, 150, 0, difficult, 0]]))
    return round(float(metric.value(iou_thresholds=0.5)["mAP"]), 3)


seen = [ap(FOUND, 0), ap(FOUND, 1), ap(FOUND[:1], 1)]
print("both found, none difficult: AP", seen[0])
print("both found, one difficult: AP", seen[1])
print("only the other found, one difficult: AP", seen[2])
sys.exit(0 if seen == [1.0, 0.5, 0.5] else 1)
EOF
env/bin/python -W ignore case.py
