#!/usr/bin/env bash
# torch 2.14.1, CPU with AVX-512: the weight gradient of a strided convolution on a 1x1 map is arbitrary in bfloat16.
#
# Expected: a 3x3 convolution with stride 2 and padding 1 sees one pixel of a 1x1 map, with its centre weight. The gradient of the eight
# other weights is 0. A feature pyramid computes its coarsest level in this way, for images of up to 64 pixels.
# Seen: in float32, or with AVX2 only (ONEDNN_MAX_CPU_ISA=AVX2), the gradient is right. In bfloat16, which autocast uses on a CPU, the
# weights to the left and right of the centre get whatever numbers were in memory, in nearly every trial: often 0, sometimes 1e33. With
# stride 1, or on maps of 2x2 and 3x3, it is right. There is no warning.
#
# Output seen:
#   torch 2.14.1+cu130
#   map 1x1, stride 2, float32: 0 of 20 gradients are wrong
#   map 1x1, stride 2, bfloat16: 17 of 20 gradients are wrong, at the weights (1, 0), (1, 2)
#   map 1x1, stride 1, bfloat16: 0 of 20 gradients are wrong
#   map 2x2, stride 2, bfloat16: 0 of 20 gradients are wrong
set -euo pipefail

if ! grep -q avx512f /proc/cpuinfo; then
  echo "this needs a CPU with AVX-512"
  exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 || exit 2

cd "$folder"
env -u PYTHONPATH -u ONEDNN_MAX_CPU_ISA "$folder/venv/bin/python" - <<'EOF'
import sys

import torch

TRIALS = 20


def weight_gradient(pixels, weight, stride, dtype):
    weight = weight.to(dtype).detach().requires_grad_()
    torch.nn.functional.conv2d(pixels.to(dtype), weight, stride=stride, padding=1).float().sum().backward()
    return weight.grad.double()


torch.manual_seed(0)
print(f"torch {torch.__version__}")
for size, stride, dtype, is_wrong in (
    (1, 2, torch.float32, False),
    (1, 2, torch.bfloat16, True),
    (1, 1, torch.bfloat16, False),
    (2, 2, torch.bfloat16, False),
):
    count, places = 0, set()
    for _ in range(TRIALS):
        pixels, weight = torch.randn(4, 32, size, size), torch.randn(32, 32, 3, 3)
        torch.full((weight.numel(),), 1e30)  # memory that was in use before
        expected = weight_gradient(pixels, weight, stride, torch.float64)
        wrong = ~((weight_gradient(pixels, weight, stride, dtype) - expected).abs() <= 0.1 * (1 + expected.abs()))
        count += bool(wrong.any())
        places |= {tuple(place) for place in wrong.any(0).any(0).nonzero().tolist()}
    where = f", at the weights {', '.join(map(str, sorted(places)))}" if places else ""
    print(f"map {size}x{size}, stride {stride}, {str(dtype)[6:]}: {count} of {TRIALS} gradients are wrong{where}")
    if (count > 0) != is_wrong:
        sys.exit("this behaves in another way than described")
EOF
