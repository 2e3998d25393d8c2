"""Options of `LoaderWatch`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Share, option


@dataclass
class LoaderWatchOptions:
    """Logs the share of time that training waits for batches, and warns if it is too large."""

    max_share: Share = option(0.5, "share of the time above which to warn")
    min_batches: Count = option(10, "smallest number of batches of an epoch to log")


OPTIONS = {"LoaderWatch": LoaderWatchOptions}
