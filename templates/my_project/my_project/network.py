"""The network: any `nn.Module` will do. Its batch norms become what `norm=` says."""

from torch import Tensor, nn


class Net(nn.Module):
    """Three convolutions and a classifier: images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        num_classes: given by the data, where it says `num_classes`.
        in_channels: given by the data, as well.
        width: channels of the first convolution.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *self._block(in_channels, width, stride=1),
            *self._block(width, 2 * width, stride=2),
            *self._block(2 * width, 2 * width, stride=2),
        )
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))

    @staticmethod
    def _block(channels: int, out_channels: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
