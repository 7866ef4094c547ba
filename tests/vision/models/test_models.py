"""The models beside their published sizes, beside independent constructions, and through the Auto classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageClassification

from hf_sharp.vision.models import AbstractImageClassifier, build
from hf_sharp.vision.models.shakedrop import ShakeDrop

TEN = [f"class {i}" for i in range(10)]

# Figures of the papers that introduced them, in millions, as printed; and the exact number.
PUBLISHED = {
    "resnet20": ("0.27", 269_722),
    "resnet32": ("0.46", 464_154),
    "resnet56": ("0.85", 853_018),
    "wrn16_8": ("11.0", 10_961_370),
    "wrn28_2": ("1.5", 1_467_610),
    "wrn28_10": ("36.5", 36_479_194),
    "resnet18": ("11.2", 11_173_962),
    "resnet50": ("23.5", 23_520_842),
    "resnet101": ("42.5", 42_512_970),
    "pyramidnet110": ("28.5", 28_485_477),
    "pyramidnet272": ("26.2", 26_210_842),
    "resnext29_32x4d": ("4.8", 4_775_754),
    "densenet121": ("7.0", 6_956_298),
    "vgg19_bn": ("20.0", 20_040_522),
}

# With 1000 classes, at the size that they were published with.
IMAGENET = {
    "timm:resnet50": 25_557_032,
    "timm:resnet101": 44_549_160,
    "timm:vit_small_patch16_224": 22_050_664,
    "timm:vit_small_patch32_224": 22_878_952,
    "timm:vit_base_patch16_224": 86_567_656,
    "timm:vit_base_patch32_224": 88_224_232,
    "timm:efficientnet_b0": 5_288_548,
    "timm:swin_tiny_patch4_window7_224": 28_288_354,
}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = build(name, TEN)
    printed, exact = PUBLISHED[name]
    assert size(model) == exact
    assert f"{exact / 1e6:.{len(printed.split('.')[1])}f}" == printed


@pytest.mark.parametrize("name", IMAGENET)
def test_parameter_counts_of_timms_models(name: str) -> None:
    pytest.importorskip("timm")
    with torch.device("meta"):
        model = build(name, [str(i) for i in range(1000)])
    assert size(model) == IMAGENET[name]


def test_parameter_count_of_the_imagenet_densenet() -> None:
    with torch.device("meta"):
        model = build("densenet121", [str(i) for i in range(1000)], {"stem": "imagenet"})
    assert size(model) == 7_978_856


def timm_resnet(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def pytorchcv(name: str) -> Callable[[], nn.Module]:
    return lambda: for_any_size(pytest.importorskip("pytorchcv.model_provider").get_model(f"{name}_cifar10"))


def projecting_resnet32() -> nn.Module:
    resnet = pytest.importorskip("pytorchcv.models.resnet_cifar")
    return for_any_size(resnet.get_resnet_cifar(num_classes=10, blocks=32, bottleneck=False))


def for_any_size(model: nn.Module) -> nn.Module:
    """With a pooling that does not ask for 32x32 pixels, so that smaller images keep the tests short."""
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return model


def torchvision_densenet() -> nn.Module:
    return pytest.importorskip("torchvision").models.densenet121(num_classes=10)


def torchvision_vgg() -> nn.Module:
    features = pytest.importorskip("torchvision").models.vgg19_bn().features
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def preactivated_wrn16_8() -> nn.Module:
    wrn = pytest.importorskip("pytorchcv.models.wrn_cifar")
    return for_any_size(wrn.get_wrn_cifar(num_classes=10, blocks=16, width_factor=8))


def preactivated_wrn28_2() -> nn.Module:
    wrn = pytest.importorskip("pytorchcv.models.wrn_cifar")
    return for_any_size(wrn.get_wrn_cifar(num_classes=10, blocks=28, width_factor=2))


TWINS: dict[str, tuple[str, dict[str, object], Callable[[], nn.Module], int]] = {
    "resnet18": ("resnet18", {}, lambda: timm_resnet("resnet18"), 16),
    "resnet50": ("resnet50", {}, lambda: timm_resnet("resnet50"), 16),
    "resnet101": ("resnet101", {}, lambda: timm_resnet("resnet101"), 16),
    "resnet20, projection": ("resnet20", {"shortcut": "projection"}, pytorchcv("resnet20"), 16),
    "resnet32, projection": ("resnet32", {"shortcut": "projection"}, projecting_resnet32, 16),
    "resnet56, projection": ("resnet56", {"shortcut": "projection"}, pytorchcv("resnet56"), 16),
    "resnext29": ("resnext29_32x4d", {}, pytorchcv("resnext29_32x4d"), 16),
    "wrn16_8": ("wrn16_8", {}, preactivated_wrn16_8, 16),
    "wrn28_2": ("wrn28_2", {}, preactivated_wrn28_2, 16),
    "wrn28_10": ("wrn28_10", {}, pytorchcv("wrn28_10"), 8),
    "pyramidnet110": ("pyramidnet110", {}, pytorchcv("pyramidnet110_a270"), 16),
    "pyramidnet272": ("pyramidnet272", {"drop": 0.0}, pytorchcv("pyramidnet272_a200_bn"), 16),
    "densenet121": ("densenet121", {"stem": "imagenet"}, torchvision_densenet, 64),
    "vgg19_bn": ("vgg19_bn", {}, torchvision_vgg, 32),
}


def layers(model: nn.Module) -> list[nn.Module]:
    """Convolutions, norms and linear layers, each kind in the order of the modules."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    found = [[m for m in model.modules() if isinstance(m, kind)] for kind in kinds]
    # The order in which a block names its layers and its shortcut's is its own affair; their shapes tell them apart.
    return [m for group in found for m in group]


def copy_weights(ours: nn.Module, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    pairs = []
    for a, b in zip(layers(ours), layers(theirs), strict=True):
        assert a.state_dict().keys() == b.state_dict().keys()
        with torch.no_grad():  # norms at 1 and 0 would hide two that are exchanged
            for x, y in zip(a.parameters(), b.parameters(), strict=True):
                if isinstance(a, nn.BatchNorm2d):
                    x.add_(0.2 * torch.rand_like(x))
                y.copy_(x)
                pairs.append((x, y))
    return pairs


LARGE = ("resnet101", "wrn28_10")  # of the same blocks as smaller ones here


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow) if c in LARGE else c for c in TWINS])
def test_forward_and_backward_as_an_independent_construction(case: str) -> None:
    name, fields, make, pixels = TWINS[case]
    torch.manual_seed(0)
    twin = make().double()
    model = build(name, TEN, fields).double()
    pairs = copy_weights(model, twin)
    assert size(model) == size(twin)
    images, labels = torch.randn(2, 3, pixels, pixels, dtype=torch.double), torch.tensor([3, 7])
    for mode in (True, False):
        model.train(mode), twin.train(mode)
        ours, theirs = model(images, labels=labels), twin(images)
        torch.testing.assert_close(ours.logits, theirs, rtol=1e-5, atol=1e-5)
        if not mode:
            break
        ours.loss.backward()
        functional.cross_entropy(theirs, labels).backward()
        for x, y in pairs:
            torch.testing.assert_close(x._grad, y._grad, rtol=1e-5, atol=1e-5)


def test_padded_shortcut_is_every_second_pixel_and_zeros() -> None:
    model = build("resnet20", TEN)
    assert isinstance(model, AbstractImageClassifier)
    block = model.get_submodule("stages.1.0")
    x = torch.randn(2, 16, 8, 8)
    short = block.short(x)
    assert torch.equal(short[:, :16], x[:, :, ::2, ::2])
    assert not short[:, 16:].any()
    assert short.shape == (2, 32, 4, 4)


@pytest.mark.parametrize("name", ["resnet20", "wrn16_8", "pyramidnet272", "densenet121", "vgg19_bn", "resnext29_32x4d"])
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    small = {"wrn16_8": {"widen": 1}, "pyramidnet272": {"depth": 20, "alpha": 24}, "densenet121": {"depths": [2, 2]}}
    model = build(name, TEN, small.get(name)).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    assert again.config.id2label == dict(enumerate(TEN))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images).logits, again(images).logits)
    assert build(str(tmp_path), [*TEN, "more"]).config.num_labels == 11  # a fresh classifier for other classes


@pytest.mark.parametrize(("stem", "least"), [("cifar", 8), ("imagenet", 29)])
def test_the_smallest_images_of_a_densenet(stem: str, least: int) -> None:
    model = build("densenet121", TEN, {"growth": 4, "depths": [1] * 4, "stem": stem}).eval()
    assert model(torch.zeros(1, 3, least, least)).logits.isfinite().all()


def test_soft_labels() -> None:
    model = build("resnet8", TEN).eval()
    images, hard = torch.randn(3, 3, 32, 32), torch.tensor([1, 5, 9])
    soft = functional.one_hot(hard, 10).float()
    torch.testing.assert_close(model(images, labels=hard).loss, model(images, labels=soft).loss)
    logits, *rest = model(images, return_dict=False)
    assert logits.shape == (3, 10)
    assert not rest


def test_shakedrop_scales_forward_and_backward_apart() -> None:
    torch.manual_seed(0)
    x = torch.ones(4000, 1, 1, 1, requires_grad=True)
    drop = ShakeDrop(keep=0.0)
    y = drop(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert -1 < y.min() < -0.99
    assert 0.99 < y.max() < 1
    assert 0 < gradient.min() < 0.01
    assert 0.99 < gradient.max() < 1
    assert abs(torch.corrcoef(torch.stack([y.flatten(), gradient.flatten()]))[0, 1]) < 0.1
    assert torch.equal(ShakeDrop(keep=1.0)(x), x)
    assert torch.equal(ShakeDrop(keep=0.3).eval()(x), 0.3 * x)


def test_shakedrop_keeps_a_whole_batch_with_the_given_probability() -> None:
    torch.manual_seed(0)
    x, drop = torch.ones(2, 1, 1, 1), ShakeDrop(keep=0.7)
    kept = sum(torch.equal(drop(x), x) for _ in range(2000)) / 2000
    assert kept == pytest.approx(0.7, abs=0.03)


def test_the_last_block_drops_most() -> None:
    model = build("pyramidnet272", TEN, {"depth": 29, "alpha": 9, "drop": 0.5})
    keeps = [m.keep for m in model.modules() if isinstance(m, ShakeDrop)]
    assert keeps == pytest.approx([1 - 0.5 * (i + 1) / 9 for i in range(9)])


def test_an_unknown_architecture_of_timm() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r" has no architecture 'resnet49'\. Did you mean 'timm:resnet.* See timm\."):
        build("timm:resnet49", TEN)


@pytest.mark.parametrize(("name", "fields"), [("timm:resnet18", {"channels": [8, 8, 8, 8]}), ("resnet8", {})])
def test_a_checkpoint_gets_a_classifier_of_the_new_classes(name: str, fields: dict[str, object], tmp_path: Path) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    first = build(name, [f"class {i}" for i in range(20)], fields)
    first.save_pretrained(tmp_path)
    again = build(str(tmp_path), ["a", "b", "c"]).eval()
    assert again(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    old, new = first.state_dict(), again.state_dict()
    differing = {key for key in old if old[key].shape != new[key].shape}
    assert {key.rsplit(".", 1)[1] for key in differing} == {"weight", "bias"}
    assert len(differing) == 2
    assert all(torch.equal(old[key], new[key]) for key in old.keys() - differing)


def test_unknown_fields_of_a_checkpoint_and_of_timm(tmp_path: Path) -> None:
    build("resnet8", TEN).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no field 'width'\. Did you mean 'widths'\?"):
        build(str(tmp_path), TEN, {"width": [1]})
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"model_args must be what timm takes for 'timm:resnet18', got \{'bogus': 1\}: "):
        build("timm:resnet18", TEN, {"bogus": 1})
