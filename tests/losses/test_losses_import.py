import subprocess
import sys

TOOLBOX = {"torchvision", "pytorch_lightning", "tyro", "matplotlib", "PIL", "pycocotools", "msgspec", "timm", "rich"}


def test_import_needs_torch_alone():
    modules = ["ranksort", "ranksort.losses", "ranksort.losses.detection"]
    code = (
        f"import sys, torch; before = {{*sys.modules}}; import {', '.join(modules)}; print(*{{*sys.modules}} - before)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {*modules} <= {*loaded}
    assert not TOOLBOX & {name.split(".")[0] for name in loaded}


def test_evaluation_needs_no_torch():
    code = "import sys; from ranksort import evaluate_detections; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
