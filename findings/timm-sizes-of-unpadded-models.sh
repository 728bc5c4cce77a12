#!/usr/bin/env bash
# timm 1.0.31, torch 2.14.1: the features of models without padding are smaller than their reduction says.
#
# Expected: `feature_info.reduction()` is how many times smaller than the image each output of `features_only=True` is, rounded up as for
# all padded models; so an image of 96 x 160 pixels, whose sides are multiples of 32, gives 12 x 20, 6 x 10 and 3 x 5 at 8, 16 and 32.
# Seen: inception_v3, inception_v4 and inception_resnet_v2 give 9 x 17, 4 x 8 and 1 x 3 under these reductions. What is computed from the
# reduction, such as the places of anchors or the sizes of maps to be added, is wrong without an error.
#
# Output seen:
#   timm 1.0.31, torch 2.14.1+cu130
#   resnet18: reduction [8, 16, 32], sizes [(12, 20), (6, 10), (3, 5)]
#   inception_v3: reduction [8, 16, 32], sizes [(9, 17), (4, 8), (1, 3)]
#   inception_v4: reduction [8, 16, 32], sizes [(9, 17), (4, 8), (1, 3)]
#   inception_resnet_v2: reduction [8, 16, 32], sizes [(9, 17), (4, 8), (1, 3)]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31 torch==2.14.1 torchvision==0.29.1 || exit 2

cd "$folder"
env -u PYTHONPATH "$folder/venv/bin/python" - <<'EOF'
import sys

import timm
import torch

print(f"timm {timm.__version__}, torch {torch.__version__}")
expected = {"resnet18": [(12, 20), (6, 10), (3, 5)]}
for name in ("resnet18", "inception_v3", "inception_v4", "inception_resnet_v2"):
    model = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).eval()
    with torch.no_grad():
        sizes = [tuple(x.shape[2:]) for x in model(torch.zeros(1, 3, 96, 160))]
    reduction = model.feature_info.reduction()
    print(f"{name}: reduction {reduction}, sizes {sizes}")
    if reduction != [8, 16, 32] or sizes != expected.get(name, [(9, 17), (4, 8), (1, 3)]):
        sys.exit(f"{name} behaves in another way than described")
EOF
