"""Options of `LoaderWatch`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, Share, option


@dataclass
class LoaderWatchOptions:
    """Logs the share of time that training waits for batches, and warns if it is too large."""

    max_share: Share = option(0.5, "part of the time above which it warns")
    min_batches: Count = option(10, "batches of an epoch below which it says nothing")


OPTIONS = {"LoaderWatch": LoaderWatchOptions}
