"""Detectors trained by RS Loss, one file each. They know nothing of data sets, recipes or the training engine."""

from .atss import ATSS
from .cascade_rcnn import CascadeRCNN
from .faster_rcnn import FasterRCNN
from .mask_rcnn import MaskRCNN

__all__ = ["ATSS", "CascadeRCNN", "FasterRCNN", "MaskRCNN"]
