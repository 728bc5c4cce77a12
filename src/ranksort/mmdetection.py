"""Convert names of weights between mmdetection 3 and this package. The authors' published weights, where some names differ, are also read.

One more difference: ATSS and PAA in mmdetection have a centreness or IoU branch, which multiplies the scores. RS-ATSS and RS-PAA do not
have it; it is set to the constant 1.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

Row = tuple[str, str]  # prefixes of names: theirs, ours; each # is a number, in the same order in both

_EVERYWHERE: list[Row] = [
    ("backbone.", "backbone.body."),
    ("neck.lateral_convs.#.conv.", "fpn.laterals.#."),
    ("neck.upsample_modules.#.channel_compressor.", "fpn.upsamplers.#.compress."),
    ("neck.upsample_modules.#.content_encoder.", "fpn.upsamplers.#.encode."),
]
_ATSS: list[Row] = [
    ("bbox_head.cls_convs.", "head.class_tower."),
    ("bbox_head.reg_convs.", "head.box_tower."),
    ("bbox_head.atss_cls.", "head.class_logits."),
    ("bbox_head.atss_reg.", "head.box_deltas."),
    ("bbox_head.scales.#.scale", "head.scales.#"),
]
_RCNN: list[Row] = [
    ("rpn_head.rpn_conv.", "rpn.conv."),
    ("rpn_head.rpn_cls.", "rpn.objectness."),
    ("rpn_head.rpn_reg.", "rpn.box_deltas."),
    ("roi_head.bbox_head.shared_fcs.", "box_head.layers."),
    ("roi_head.bbox_head.fc_cls.", "box_head.class_logits."),
    ("roi_head.bbox_head.fc_reg.", "box_head.box_deltas."),
    ("roi_head.bbox_head.#.shared_fcs.", "box_head.#.layers."),  # of cascades
    ("roi_head.bbox_head.#.fc_cls.", "box_head.#.class_logits."),
    ("roi_head.bbox_head.#.fc_reg.", "box_head.#.box_deltas."),
    ("roi_head.mask_head.convs.#.conv.", "mask_head.convs.#."),
    ("roi_head.mask_head.upsample.", "mask_head.upsample."),
    ("roi_head.mask_head.conv_logits.", "mask_head.logits."),
]
_YOLACT: list[Row] = [
    ("bbox_head.head_convs.0.conv.", "head.shared.0."),
    ("bbox_head.conv_cls.", "head.class_logits."),
    ("bbox_head.conv_reg.", "head.box_deltas."),
    ("bbox_head.conv_coeff.", "head.coefficients."),
    ("mask_head.protonet.0.", "prototypes.0."),
    ("mask_head.protonet.2.", "prototypes.2."),
    ("mask_head.protonet.4.", "prototypes.4."),
    ("mask_head.protonet.8.", "prototypes.7."),  # theirs has one more ReLU, after the upsampling
    ("mask_head.protonet.10.", "prototypes.9."),
]
_SOLOV2: list[Row] = [
    ("mask_head.cls_convs.", "head.class_tower."),
    ("mask_head.kernel_convs.", "head.kernel_tower."),
    ("mask_head.conv_cls.", "head.class_logits."),
    ("mask_head.conv_kernel.", "head.kernels."),
    ("mask_head.mask_feature_head.convs_all_levels.#.conv#.", "mask_features.levels.#.#."),
    ("mask_head.mask_feature_head.conv_pred.", "mask_features.output."),
]
_AS_PUBLISHED: list[Row] = [  # RS-SOLOv2 of the paper
    ("bbox_head.cate_convs.", "head.class_tower."),
    ("bbox_head.kernel_convs.", "head.kernel_tower."),
    ("bbox_head.solo_cate.", "head.class_logits."),
    ("bbox_head.solo_kernel.", "head.kernels."),
    ("mask_feat_head.convs_all_levels.#.conv#.", "mask_features.levels.#.#."),
    ("mask_feat_head.conv_pred.0.", "mask_features.output."),
]
_HEADS = {
    "atss": _ATSS,
    "paa": _ATSS,
    "faster_rcnn": _RCNN,
    "cascade_rcnn": _RCNN,
    "mask_rcnn": _RCNN,
    "yolact": _YOLACT,
    "solov2": _SOLOV2,
    "solov2_light": _SOLOV2,
}
_CENTRENESS = "bbox_head.atss_centerness."
_ONLY_FOR_TRAINING = "mask_head.segm_branch."  # YOLACT's semantic segmentation
_ALWAYS = 100.0  # a logit whose sigmoid is 1 in float32


def from_mmdetection(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of mmdetection 3 or of the authors to our names. Other names do not change.

    Raises:
        ValueError: scores depend on a centreness or IoU branch, which ours do not have.
    """
    rows = [*_EVERYWHERE, *_ATSS, *_RCNN, *_YOLACT, *_SOLOV2, *_AS_PUBLISHED]
    laterals = _laterals(state_dict, "neck.lateral_convs.#.conv.bias")
    converted = {}
    for name, tensor in state_dict.items():
        if name.startswith(_CENTRENESS):
            if tensor.any() if name.endswith("weight") else (tensor < _ALWAYS).any():
                raise ValueError(
                    "these weights cannot be converted: they have a trained centreness or IoU branch, which multiplies the scores, "
                    "and models trained with RS Loss have none"
                )
        elif not name.startswith(_ONLY_FOR_TRAINING):
            converted[_our_name(name, rows, laterals)] = tensor
    return converted


def to_mmdetection(state_dict: Mapping[str, Tensor], detector: str) -> dict[str, Tensor]:
    """Convert one of our state dicts to the names of mmdetection 3, whose models load it; docs/elsewhere.md has their settings.

    Args:
        state_dict: of a model with a torchvision ResNet or ResNeXt.
        detector: its name in recipes.

    Raises:
        ValueError: mmdetection has no such detector or backbone.
    """
    if detector not in _HEADS:
        raise ValueError(f"mmdetection has no detector {detector}: only {', '.join(_HEADS)} can be converted to it")
    if "backbone.body.conv1.weight" not in state_dict:
        raise ValueError(
            f"only models with a ResNet or ResNeXt of torchvision can be converted to mmdetection, and this {detector} has another backbone"
        )
    rows = [(ours, theirs) for theirs, ours in (*_EVERYWHERE, *_HEADS[detector])]
    laterals = _laterals(state_dict, "fpn.laterals.#.bias")
    converted = {_their_name(k, rows, laterals): tensor for k, tensor in state_dict.items() if not is_of_loss(k)}
    if detector in ("atss", "paa"):
        weight = state_dict["head.box_deltas.weight"]
        anchors = len(weight) // 4
        converted[_CENTRENESS + "weight"] = torch.zeros_like(weight[:anchors])
        converted[_CENTRENESS + "bias"] = torch.full_like(weight[:anchors, 0, 0, 0], _ALWAYS)
    return converted


def is_of_loss(name: str) -> bool:
    """Whether one of our tensors belongs to the state of a training loss, such as the balance of aLRP Loss; others' weights have none."""
    return "criterion" in name.partition(".")[0]


def _our_name(name: str, rows: list[Row], laterals: int) -> str:
    if output := re.match(r"neck\.fpn_convs\.(\d+)\.conv\.(.*)", name):
        level = int(output[1])
        return f"fpn.outputs.{level}.{output[2]}" if level < laterals else f"fpn.extras.{level - laterals}.{output[2]}"
    return _renamed(name, rows).replace(".gn.", ".norm.")


def _their_name(name: str, rows: list[Row], laterals: int) -> str:
    if output := re.match(r"fpn\.(outputs|extras)\.(\d+)\.(.*)", name):
        level = int(output[2]) + laterals * (output[1] == "extras")
        return f"neck.fpn_convs.{level}.conv.{output[3]}"
    return _renamed(name, rows).replace(".norm.", ".gn.")


def _laterals(state_dict: Mapping[str, Tensor], like: str) -> int:
    """How many lateral convolutions the pyramid has: outputs beyond these are extra levels."""
    return sum(_pattern(like).fullmatch(name) is not None for name in state_dict)


def _renamed(name: str, rows: list[Row]) -> str:
    for before, after in rows:
        if found := _pattern(before).match(name):
            for number in found.groups():
                after = after.replace("#", number, 1)
            return after + name[found.end() :]
    return name


def _pattern(beginning: str) -> re.Pattern[str]:
    return re.compile(re.escape(beginning).replace(r"\#", r"(\d+)"))
