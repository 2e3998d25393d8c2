"""The options of fully convolutional networks: their ResNet's."""

from syncbn.models.resnet_options import ResNetOptions

OPTIONS = {f"fcn_resnet{depth}": ResNetOptions for depth in (18, 50)}
