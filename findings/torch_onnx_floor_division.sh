#!/usr/bin/env bash
# torch 2.14.1, onnxscript 0.7.2, onnxruntime 1.32.0: `//` of negative sizes is rounded towards 0 in the exported ONNX file.
#
# Expected: padding rows to a multiple of 4 by the idiom -(-n // 4) * 4 gives 8 for 5, 6 and 8 rows, in PyTorch, in the exported program and
# in ONNX Runtime.
# Seen: the exporter translates Python's floor division of sizes into ONNX's Div, which truncates. The ONNX file cuts 5 and 6 rows to 4
# instead of padding them to 8. There is no warning; for sizes that are multiples of 4 already the results are equal.
#
# Output seen:
#   torch 2.14.1+cu130, onnxscript 0.7.2, onnxruntime 1.32.0
#   8 rows: PyTorch 8, ONNX Runtime 8
#   6 rows: PyTorch 8, ONNX Runtime 4
#   5 rows: PyTorch 8, ONNX Runtime 4
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0 onnxruntime==1.32.0 || exit 2

cd "$folder"
env -u PYTHONPATH "$folder/venv/bin/python" - <<'EOF'
import sys

import onnxruntime
import onnxscript
import torch


class Padded(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.pad(x, (0, -(-x.shape[0] // 4) * 4 - x.shape[0]))


print(f"torch {torch.__version__}, onnxscript {onnxscript.__version__}, onnxruntime {onnxruntime.__version__}")
rows = {0: torch.export.Dim.DYNAMIC}
program = torch.onnx.export(Padded(), (torch.arange(6.0),), dynamo=True, dynamic_shapes=(rows,), verbose=False)
session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
for n, expected in ((8, 8), (6, 4), (5, 4)):
    x = torch.arange(float(n))
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    print(f"{n} rows: PyTorch {len(Padded()(x))}, ONNX Runtime {len(got)}")
    if len(got) != expected:
        sys.exit(f"this behaves in another way than described: {expected} were expected")
EOF
