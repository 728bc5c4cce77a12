"""Published checkpoints without the authors' files."""

from torch import Tensor, nn


def published_atss(model: nn.Module) -> dict[str, Tensor]:
    """The weights of `model` under the names of the published checkpoints, for RS-ATSS with one convolution in its towers."""
    names = {
        "backbone.body.": "backbone.",
        "fpn.extras.0.": "neck.fpn_convs.3.conv.",
        "fpn.extras.1.": "neck.fpn_convs.4.conv.",
        **{f"fpn.laterals.{i}.": f"neck.lateral_convs.{i}.conv." for i in range(3)},
        **{f"fpn.outputs.{i}.": f"neck.fpn_convs.{i}.conv." for i in range(3)},
        "head.class_tower.0.conv.": "bbox_head.cls_convs.0.conv.",
        "head.class_tower.0.norm.": "bbox_head.cls_convs.0.gn.",
        "head.box_tower.0.conv.": "bbox_head.reg_convs.0.conv.",
        "head.box_tower.0.norm.": "bbox_head.reg_convs.0.gn.",
        "head.class_logits.": "bbox_head.atss_cls.",
        "head.box_deltas.": "bbox_head.atss_reg.",
    }
    published = {f"bbox_head.scales.{i}.scale": scale.detach() for i, scale in enumerate(model.head.scales)}
    for ours, theirs in names.items():
        published |= {theirs + k.removeprefix(ours): v for k, v in model.state_dict().items() if k.startswith(ours)}
    return published
