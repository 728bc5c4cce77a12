"""For `torch.hub`: models of ranksort without installing it. Installed are what `dependencies` says, for the rest see pyproject.toml.

torch.hub.load("OWNER/ranksort", "from_pretrained", "USER/NAME")     # or source="local" and a checkout; see `ranksort.hub`
torch.hub.load("OWNER/ranksort", "create_model", "ranksort_atss_r50_fpn_1x_coco", num_classes=3)
"""

import importlib.util
import sys
from pathlib import Path

dependencies = [
    "torch",
    "torchvision",
    "numpy",
    "PIL",
    "safetensors",
    "pycocotools",
    "msgspec",
    "matplotlib",
    "timm",
    "rich",
]

if importlib.util.find_spec("ranksort") is None:
    sys.path.append(str(Path(__file__).parent / "src"))

from ranksort.checkpoints import load_model  # noqa: E402, F401
from ranksort.hub import from_pretrained  # noqa: E402, F401
from ranksort.recipes import create_model  # noqa: E402, F401
