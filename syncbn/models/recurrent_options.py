"""Options of recurrent networks over image rows."""

from dataclasses import dataclass

from syncbn.models.shared_options import OfOneSize
from syncbn.norm.core.options import Count, option


@dataclass
class RecurrentOptions(OfOneSize):
    """A recurrent network that reads images row by row."""

    hidden_size: Count = option(64, "features of the hidden state")


OPTIONS = {"lstm": RecurrentOptions, "gru": RecurrentOptions}
