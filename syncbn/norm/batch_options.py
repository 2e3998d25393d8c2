"""Options of `batch`."""

from dataclasses import dataclass

from syncbn.norm.core.shared_options import Tracking


@dataclass
class BatchNormOptions(Tracking):
    """Batch normalization of each rank's own batch (Ioffe & Szegedy 2015)."""


OPTIONS = {"batch": BatchNormOptions}
