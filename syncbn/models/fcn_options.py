"""Options of fully convolutional networks, which are those of their ResNet."""

from syncbn.models.resnet_options import ResNetOptions

OPTIONS = {f"fcn_resnet{depth}": ResNetOptions for depth in (18, 50)}
