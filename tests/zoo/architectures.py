"""Networks of torchvision, timm, segmentation-models-pytorch, monai, transformers and kornia, built on demand."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from tests.zoo.detectors import detect, features


@dataclass(frozen=True)
class Architecture:
    """A network of another package.

    Attributes:
        name: name in this table.
        library: name of the package.
        make: builds it with random weights; only called with its library installed.
        shape: shape of one sample.
        forward: how it is called with a batch; with it alone when None.
        features: what `verify` compares; the result of `forward` when None.
    """

    name: str
    library: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    forward: Callable[[nn.Module, Tensor], Any] | None = None
    features: Callable[[nn.Module, Tensor], Any] | None = None


def _called(path: str, *args: Any, **options: Any) -> Callable[[], Any]:
    """Build by the name of a function or class: "package.module.function"."""
    module, _, name = path.rpartition(".")
    return lambda: getattr(importlib.import_module(module), name)(*args, **options)


def _tensors_only(path: str, **config: Any) -> Callable[[], Any]:
    """Build a network of transformers: `package.Class` with a configuration, whose class is given by a keyword."""

    def make() -> Any:
        transformers = importlib.import_module("transformers")
        return getattr(transformers, path)(getattr(transformers, config["of"])(**config.get("options", {})))

    return make


def _torchvision() -> list[Architecture]:
    image = partial(_torchvision_model, shape=(3, 64, 64))
    found = [
        image(name)
        for name in [
            "resnet18",
            "resnet50",
            "resnext50_32x4d",
            "densenet121",
            "mobilenet_v2",
            "mobilenet_v3_small",
            "mnasnet0_5",
            "shufflenet_v2_x0_5",
            "efficientnet_b0",
            "efficientnet_v2_s",
            "regnet_y_400mf",
            "regnet_x_400mf",
        ]
    ]
    found += [
        image("googlenet", init_weights=False),
        _torchvision_model("inception_v3", (3, 96, 96), init_weights=False, aux_logits=False),
    ]
    found.append(_torchvision_model("maxvit_t", (3, 224, 224)))
    found.append(Architecture("vgg11_bn", "torchvision", _small_vgg, (3, 32, 32)))
    segmentation = partial(_torchvision_model, shape=(3, 64, 64), weights_backbone=None, num_classes=5)
    found += [
        segmentation(f"segmentation.{name}")
        for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
    ]
    video = partial(_torchvision_model, shape=(3, 8, 32, 32))
    found += [video(f"video.{name}") for name in ("r3d_18", "mc3_18", "r2plus1d_18")]
    proposals = {f"rpn_{when}_nms_top_n_{part}": 20 for when in ("pre", "post") for part in ("train", "test")}
    found += [
        _detector("fasterrcnn_mobilenet_v3_large_320_fpn", min_size=96, max_size=96, **proposals),
        _detector("retinanet_resnet50_fpn", min_size=96, max_size=96, topk_candidates=20),
        _detector("ssdlite320_mobilenet_v3_large", topk_candidates=20),
    ]
    return found


def _detector(name: str, **options: Any) -> Architecture:
    make = _called(
        f"torchvision.models.detection.{name}", weights=None, weights_backbone=None, num_classes=5, **options
    )
    return Architecture(name, "torchvision", make, (3, 96, 96), detect, features)


def _small_vgg() -> Any:
    """VGG-11 with its linear layers of 120 million numbers replaced by one."""
    net = _called("torchvision.models.vgg11_bn", weights=None)()
    net.classifier = nn.Linear(512 * 7 * 7, 10)
    return net


def _torchvision_model(name: str, shape: tuple[int, ...], **options: Any) -> Architecture:
    make = _called(f"torchvision.models.{name}", weights=None, **options)
    return Architecture(name.rpartition(".")[2], "torchvision", make, shape)


def _timm() -> list[Architecture]:
    small = (
        "resnet10t resnet26d seresnet18 skresnet18 ecaresnet26t resnest14d res2net50_14w_8s cspresnet50 dla34 dpn48b "
        "hrnet_w18_small_v2 ese_vovnet19b_dw selecsls42b gernet_s repvgg_a0 mobileone_s0 regnetx_002 regnety_002 "
        "mobilenetv3_small_050 mobilenetv4_conv_small lcnet_050 tinynet_e semnasnet_075 spnasnet_100 hardcorenas_a "
        "mixnet_s ghostnet_050 ghostnetv2_100 repghostnet_050 rexnetr_200 efficientnet_lite0 tf_efficientnet_b0 "
        "tf_mobilenetv3_small_minimal_100 fbnetc_100 hgnetv2_b0 starnet_s1 efficientvit_b0 densenet121 "
        "mobilevitv2_050 xception41 test_byobnet test_resnet test_efficientnet repvit_m0_9 mobilenetv1_100 "
        "fasternet_t0 ghostnetv3_050"
    )
    middle = "test_coatnet test_maxvit"
    large = "levit_128s fastvit_t8 efficientformer_l1 mobilevit_xxs xcit_nano_12_p8_224 visformer_tiny efficientvit_m0"
    large += " shvit_s1"
    sizes = {64: small, 160: middle, 224: large}
    return [_timm_model(name, size) for size, names in sizes.items() for name in names.split()]


def _timm_model(name: str, size: int) -> Architecture:
    return Architecture(f"timm {name}", "timm", _called("timm.create_model", name, pretrained=False), (3, size, size))


def _effdet() -> list[Architecture]:
    name = "tf_efficientdet_lite0"
    make = _called("effdet.create_model", name, pretrained=False, pretrained_backbone=False, image_size=(64, 64))
    return [Architecture(f"effdet {name}", "effdet", make, (3, 64, 64))]


def _smp() -> list[Architecture]:
    networks = {
        "Unet": "resnet18",
        "UnetPlusPlus": "resnet18",
        "FPN": "mobilenet_v2",
        "PSPNet": "resnet18",
        "DeepLabV3Plus": "resnet18",
        "Linknet": "densenet121",
        "MAnet": "timm-efficientnet-b0",
        "PAN": "resnet18",
        "UPerNet": "resnet18",
        "Segformer": "resnet18",
    }
    return [
        Architecture(
            f"smp {name} ({encoder})",
            "segmentation-models-pytorch",
            _called(f"segmentation_models_pytorch.{name}", encoder_name=encoder, encoder_weights=None, classes=3),
            (3, 128, 128),
        )
        for name, encoder in networks.items()
    ]


def _monai() -> list[Architecture]:
    flat, deep = (1, 64, 64), (1, 32, 32, 32)
    two, three = ({"spatial_dims": d, "in_channels": 1, "out_channels": 3} for d in (2, 3))
    batch = {"norm": ("batch", {"affine": True})}
    networks: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
        ("UNet", {**two, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2, "norm": "batch"}, flat),
        ("UNet", {**three, "channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 1, "norm": "batch"}, deep),
        ("BasicUNet", {**two, "features": (8, 8, 16, 16, 32, 8), **batch}, flat),
        ("BasicUNetPlusPlus", {**two, "features": (8, 8, 16, 16, 32, 8), **batch}, flat),
        ("SegResNet", {**two, "init_filters": 8, "norm": "batch"}, flat),
        ("VNet", {**three}, (1, 16, 16, 16)),
        ("HighResNet", {**two, "norm_type": "batch"}, flat),
        ("DenseNet121", {**two}, flat),
        ("DenseNet121", {**three}, deep),
        (
            "EfficientNetBN",
            {"model_name": "efficientnet-b0", "in_channels": 1, "spatial_dims": 2, "pretrained": False},
            flat,
        ),
        ("SEResNet50", {"spatial_dims": 2, "in_channels": 1, "num_classes": 3}, flat),
        (
            "DynUNet",
            {
                **two,
                "kernel_size": (3, 3, 3),
                "strides": (1, 2, 2),
                "upsample_kernel_size": (2, 2),
                "norm_name": "batch",
            },
            flat,
        ),
        ("resnet10", {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 3}, deep),
    ]
    return [
        Architecture(
            f"monai {name}{' 3d' if len(shape) == 4 else ''}",
            "monai",
            _called(f"monai.networks.nets.{name}", **options),
            shape,
        )
        for name, options, shape in networks
    ]


def _transformers() -> list[Architecture]:
    image = (3, 64, 64)
    networks: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
        (
            "ResNetForImageClassification",
            "ResNetConfig",
            {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 96, 128]},
            image,
        ),
        (
            "RegNetForImageClassification",
            "RegNetConfig",
            {"depths": [1, 1, 2, 1], "hidden_sizes": [32, 64, 96, 128], "groups_width": 16},
            image,
        ),
        ("MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.5}, image),
        ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.5}, image),
        (
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
            image,
        ),
        ("LevitForImageClassification", "LevitConfig", {}, (3, 224, 224)),
        ("CvtForImageClassification", "CvtConfig", {}, image),
        (
            "SwiftFormerForImageClassification",
            "SwiftFormerConfig",
            {"depths": [1, 1, 2, 1], "embed_dims": [16, 32, 48, 64]},
            image,
        ),
        ("MobileViTForImageClassification", "MobileViTConfig", {}, image),
        (
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            {"hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 64},
            image,
        ),
        (
            "PatchTSTForPrediction",
            "PatchTSTConfig",
            {
                "norm_type": "batchnorm",
                "num_input_channels": 3,
                "context_length": 32,
                "patch_length": 8,
                "patch_stride": 8,
            },
            (32, 3),
        ),
    ]
    return [
        Architecture(f"transformers {name}", "transformers", _tensors_only(name, of=config, options=options), shape)
        for name, config, options, shape in networks
    ]


def _kornia() -> list[Architecture]:
    """Networks of kornia, which is also in the test suite's environment: these run in CI."""
    widths = {"initial_dim": 16, "block_dims": [16, 24, 32]}
    return [
        Architecture("kornia HardNet", "kornia", _called("kornia.feature.HardNet", pretrained=False), (1, 32, 32)),
        Architecture("kornia XFeat", "kornia", _called("kornia.feature.xfeat.XFeatModel"), (3, 64, 64)),
        Architecture(
            "kornia LoFTR backbone",
            "kornia",
            _called("kornia.feature.loftr.backbone.ResNetFPN_8_2", widths),
            (1, 32, 32),
        ),
        Architecture(
            "kornia RT-DETR backbone",
            "kornia",
            lambda: importlib.import_module("kornia.models.rt_detr.architecture.resnet_d").ResNetD.from_config(18),
            (3, 64, 64),
        ),
    ]


def architectures() -> dict[str, Architecture]:
    """All architectures, by name."""
    found = [*_torchvision(), *_timm(), *_effdet(), *_smp(), *_monai(), *_transformers(), *_kornia()]
    return {architecture.name: architecture for architecture in found}
