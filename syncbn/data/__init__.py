"""Data modules, and the samplers that cut one global batch into each rank's part."""

from syncbn.data.base import GlobalBatchDataModule
from syncbn.data.corruptions import Corruptions
from syncbn.data.digits import DigitsDataModule
from syncbn.data.fashion_mnist import FashionMNISTDataModule
from syncbn.data.images import ImageDataModule
from syncbn.data.loader import BatchLoader, IndexedLoader
from syncbn.data.sampler import ClassShardSampler, GlobalBatchSampler
from syncbn.data.scenes import ScenesDataModule
from syncbn.data.stream import StreamLoader

__all__ = [
    "BatchLoader",
    "ClassShardSampler",
    "Corruptions",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "GlobalBatchDataModule",
    "GlobalBatchSampler",
    "ImageDataModule",
    "IndexedLoader",
    "ScenesDataModule",
    "StreamLoader",
]
