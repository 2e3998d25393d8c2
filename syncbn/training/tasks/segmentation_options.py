"""The options of segmentation: those of classification, for every pixel."""

from syncbn.training.tasks.classification_options import ClassificationOptions

OPTIONS = {"SegmentationTask": ClassificationOptions}
