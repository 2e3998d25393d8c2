"""Options of classification."""

from dataclasses import dataclass

from syncbn.norm.core.options import BelowOne, option


@dataclass
class ClassificationOptions:
    """Classification of images, by cross-entropy."""

    label_smoothing: BelowOne = option(
        0.0,
        "share of the training target that is spread over all classes",
        refusal="label_smoothing must be at least 0 and below 1, got {value}",
    )


OPTIONS = {"ClassificationTask": ClassificationOptions}
