"""Data modules, and the samplers that split each global batch over the ranks."""

from typing import TYPE_CHECKING

from syncbn.lazy import lazy_names

if TYPE_CHECKING:
    from syncbn.data.base import GlobalBatchDataModule as GlobalBatchDataModule
    from syncbn.data.corruptions import Corruptions as Corruptions
    from syncbn.data.digits import DigitsDataModule as DigitsDataModule
    from syncbn.data.fashion_mnist import FashionMNISTDataModule as FashionMNISTDataModule
    from syncbn.data.images import ImageDataModule as ImageDataModule
    from syncbn.data.loader import BatchLoader as BatchLoader
    from syncbn.data.loader import IndexedLoader as IndexedLoader
    from syncbn.data.sampler import ClassShardSampler as ClassShardSampler
    from syncbn.data.sampler import GlobalBatchSampler as GlobalBatchSampler
    from syncbn.data.scenes import ScenesDataModule as ScenesDataModule
    from syncbn.data.stream import StreamLoader as StreamLoader

_HOMES = {
    "BatchLoader": "loader",
    "ClassShardSampler": "sampler",
    "Corruptions": "corruptions",
    "DigitsDataModule": "digits",
    "FashionMNISTDataModule": "fashion_mnist",
    "GlobalBatchDataModule": "base",
    "GlobalBatchSampler": "sampler",
    "ImageDataModule": "images",
    "IndexedLoader": "loader",
    "ScenesDataModule": "scenes",
    "StreamLoader": "stream",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
