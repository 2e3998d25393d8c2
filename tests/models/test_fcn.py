"""FCN against a plain computation over the backbone's stages."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncbn
import syncbn.models
from syncbn.models.fcn import FCN, fcn_resnet18, fcn_resnet50
from syncbn.models.resnet import resnet18


def bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Enlarged by the formula: each output pixel's centre falls between four input pixels' centres."""

    def weights(size: int, larger: int) -> Tensor:
        centres = ((torch.arange(larger, dtype=x.dtype) + 0.5) * size / larger - 0.5).clamp(0, size - 1)
        distances = (centres[:, None] - torch.arange(size, dtype=x.dtype)).abs()
        return (1 - distances).clamp(min=0)

    rows, columns = weights(x.shape[2], height), weights(x.shape[3], width)
    return torch.einsum("nchw,ih,jw->ncij", x, rows, columns)


@pytest.mark.parametrize(("build", "stem"), [(fcn_resnet18, "imagenet"), (fcn_resnet50, "cifar")])
@pytest.mark.parametrize("placement", ["post_conv", "pre_activation"])
def test_scores_are_added_from_coarse_to_fine(build, stem: str, placement: str) -> None:
    torch.manual_seed(0)
    model = build("batch", num_classes=3, width=4, stem=stem, placement=placement).double().eval()
    for parameter in model.scores.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 50, 71, dtype=torch.float64)
    first = 4 if stem == "imagenet" else 1

    stages = model.backbone.stages(x)
    assert [tuple(s.shape[2:]) for s in stages] == [
        (-(-50 // (first * 2**i)), -(-71 // (first * 2**i))) for i in range(4)
    ]
    y = torch.zeros(2, 3, *stages[3].shape[2:], dtype=torch.float64)
    for stage, score in zip(stages[:0:-1], list(model.scores)[::-1], strict=True):
        y = bilinear(y, *stage.shape[2:]) + torch.einsum("nchw,kc->nkhw", stage, score.weight[:, :, 0, 0])
        y = y + score.bias[:, None, None]

    torch.testing.assert_close(model(x), bilinear(y, 50, 71))


@pytest.mark.parametrize("norm", ["sync", "group", "none"])
def test_every_parameter_gets_a_gradient(norm: str) -> None:
    torch.manual_seed(0)
    options = {"groups": 4} if norm == "group" else {}
    model = fcn_resnet18(syncbn.norm_layer(norm, **options), num_classes=4, in_channels=1, stem="cifar", width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    images, labels = torch.randn(3, 1, 16, 16), torch.randint(4, (3, 16, 16))
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(4.0).log().item())  # scores start at 0
    assert losses[-1] < losses[0]


def test_wrong_arguments_and_images_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        FCN(resnet18(width=4), num_classes=0)
    with pytest.raises(ValueError, match=r"expected an input \(N, 3, H, W\), got \(1, 1, 8, 8\)"):
        fcn_resnet18(width=4)(torch.zeros(1, 1, 8, 8))


def test_a_head_of_other_classes_is_made_anew(tmp_path) -> None:
    torch.save(fcn_resnet18(width=4, num_classes=5).state_dict(), tmp_path / "w.pt")
    model = fcn_resnet18(width=4, num_classes=7)
    said = syncbn.models.load_weights(model, tmp_path / "w.pt")
    assert "scores.0.weight" in said
    assert "for 7 classes where the file has 5" in said
