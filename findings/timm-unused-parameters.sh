#!/usr/bin/env bash
# timm 1.0.31, torch 2.14.1: with `out_indices`, HRNet's feature extractor keeps parameters that no output depends on.
#
# Expected: `create_model(..., features_only=True, out_indices=...)` leaves out what only the other outputs need, as it does for models
# that are a chain of stages; so every parameter gets a gradient from the sum of all outputs.
# Seen: of hrnet_w18_small with the outputs of strides 8, 16 and 32, 21 tensors get none: those of the last fusion and the head that lead to
# stride 4. They are computed nevertheless, and DistributedDataParallel refuses such a model unless it looks for unused parameters.
#
# Output seen:
#   timm 1.0.31, torch 2.14.1+cu130
#   resnet18: 0 of 60 parameters get no gradient
#   hrnet_w18_small: 21 of 261 parameters get no gradient, the first is stage4.0.fuse_layers.0.1.0.weight
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
for name, expected in (("resnet18", 0), ("hrnet_w18_small", 21)):
    model = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
    assert model.feature_info.reduction() == [8, 16, 32]
    sum(x.sum() for x in model(torch.rand(2, 3, 96, 160))).backward()
    parameters = dict(model.named_parameters())
    without = [key for key, parameter in parameters.items() if parameter.grad is None]
    first = f", the first is {without[0]}" if without else ""
    print(f"{name}: {len(without)} of {len(parameters)} parameters get no gradient{first}")
    if len(without) != expected:
        sys.exit(f"{name} behaves in another way than described: {expected} were expected")
EOF
