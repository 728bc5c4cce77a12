#!/usr/bin/env bash
# Tool: ensemble-boxes 1.0.9, soft_nms (linear and Gaussian).
#
# Behaviour: soft_nms returns the scores that it was given, not the lowered ones. It only leaves out boxes whose lowered
# score is below `thresh` (0.001), so a duplicate keeps its full score. The order of the boxes is that of the lowered scores.
# Besides, with `weights` it writes the weighted scores into the caller's list: a second call, for example to compare two
# methods, starts from other scores.
#
# Expected: the lowered scores, which are all that soft NMS does (Bodla et al., ICCV 2017): a box of score .8 with IoU .975
# to a better one gets .8 * (1 - .975) = .02 (linear) or .8 * exp(-.975 ** 2 / .5) = .12. And arguments left as they were.
# With the given scores every duplicate is a false positive of high score.
#
# Output seen: scores [0.9, 0.7, 0.8] for given scores 0.9, 0.8 (the duplicate), 0.7; an argument [0.9] with two equal
# weights is [0.45] after one call and [0.225] after two.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check ensemble-boxes==1.0.9 || exit 2

cat > case.py <<'EOF'
import math
import sys

from ensemble_boxes import soft_nms

BOXES = [[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.49], [0.6, 0.6, 0.9, 0.9]]]
seen = []
for method, name in ((1, "linear"), (2, "Gaussian")):
    _, scores, _ = soft_nms(BOXES, [[0.9, 0.8, 0.7]], [[0, 0, 0]], method=method, iou_thr=0.5, sigma=0.5)
    lowered = 0.8 * (1 - 0.975 if method == 1 else math.exp(-(0.975**2) / 0.5))
    seen.append([round(float(score), 3) for score in scores])
    print(f"{name} soft NMS of 0.9, 0.8 (a duplicate), 0.7: {seen[-1]}; the duplicate should have {lowered:.3f}")

boxes, scores, labels = [[[0.1, 0.1, 0.5, 0.5]], [[0.6, 0.6, 0.9, 0.9]]], [[0.9], [0.8]], [[0], [0]]
after = []
for _ in range(2):
    soft_nms(boxes, scores, labels, weights=[1, 1])
    after.append([round(float(score), 3) for score in scores[0]])
print("the caller's scores of the first detector: [0.9], after one call", after[0], "after two", after[1])
sys.exit(0 if seen == [[0.9, 0.7, 0.8]] * 2 and after == [[0.45], [0.225]] else 1)
EOF
env/bin/python -W ignore case.py
