#!/usr/bin/env bash
# triton 3.1.0 (which torch 2.5.1 brings along) with NumPy 2: in the interpreter (TRITON_INTERPRET=1) no kernel writes anything.
#
# Expected: a kernel that doubles four numbers gives [2, 4, 6, 8] with any NumPy that pip allows beside triton, or an error that says no.
# Seen: with NumPy 1.26.4 it does. With NumPy 2.2.6, which pip chooses if nothing else is asked for, the output keeps what it contained
# before. There is no error, so that a test on a CPU which compares zeros with zeros passes. With triton 3.2.0 both are right.
#
# Output seen:
#   triton 3.1.0, numpy 1.26.4: twice [1.0, 2.0, 3.0, 4.0] is [2.0, 4.0, 6.0, 8.0]
#   triton 3.1.0, numpy 2.2.6: twice [1.0, 2.0, 3.0, 4.0] is [-1.0, -1.0, -1.0, -1.0]
#   triton 3.2.0, numpy 2.2.6: twice [1.0, 2.0, 3.0, 4.0] is [2.0, 4.0, 6.0, 8.0]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
install() { "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "$@" || exit 2; }
install torch==2.5.1 numpy==1.26.4

cat > "$folder/double.py" <<'EOF'
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
import numpy
import torch
import triton
import triton.language as tl


@triton.jit
def double(x, out, size: tl.constexpr):
    place = tl.arange(0, size)
    tl.store(out + place, 2 * tl.load(x + place))


x, out = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.full((4,), -1.0)
double[(1,)](x, out, size=4)
print(f"triton {triton.__version__}, numpy {numpy.__version__}: twice {x.tolist()} is {out.tolist()}")
if (out.tolist() == [2.0, 4.0, 6.0, 8.0]) != (sys.argv[1] == "right"):
    sys.exit(f"this behaves in another way than described: it was {sys.argv[1]}")
EOF
cd "$folder"
double() { env -u PYTHONPATH "$folder/venv/bin/python" double.py "$1"; }
double right
install numpy==2.2.6
double wrong
install --no-deps triton==3.2.0
double right
