"""Options of segmentation, which are those of classification."""

from syncbn.training.tasks.classification_options import ClassificationOptions

OPTIONS = {"SegmentationTask": ClassificationOptions}
