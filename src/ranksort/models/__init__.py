"""Detectors trained with RS Loss, one file each; start with `atss.py`. They do not depend on data sets, recipes or the engine.

Their names are in `recipes/detectors.py`.
"""

from .atss import ATSS
from .cascade_rcnn import CascadeRCNN
from .detector import Detector
from .faster_rcnn import FasterRCNN
from .mask_rcnn import MaskRCNN
from .paa import PAA
from .solov2 import SOLOv2, SOLOv2Light
from .yolact import YOLACT

__all__ = ["ATSS", "PAA", "YOLACT", "CascadeRCNN", "Detector", "FasterRCNN", "MaskRCNN", "SOLOv2", "SOLOv2Light"]
