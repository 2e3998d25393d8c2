"""Data modules, and the sampler that cuts one global batch into each rank's part."""

from syncbn.data.corruptions import Corruptions
from syncbn.data.digits import DigitsDataModule
from syncbn.data.loader import BatchLoader
from syncbn.data.sampler import GlobalBatchSampler

__all__ = ["BatchLoader", "Corruptions", "DigitsDataModule", "GlobalBatchSampler"]
