"""Options of the learning rate's schedule."""

from dataclasses import dataclass

from syncbn.norm.core.options import BelowOne, Fraction, Partial, option


@dataclass
class CosineOptions(Partial):
    """Linear warm-up, then cosine decay, per optimizer step."""

    warmup_fraction: BelowOne = option(
        0.1, "part of the steps that rises", refusal="warmup_fraction must be at least 0 and below 1, got {value}"
    )
    final_fraction: Fraction = option(
        0.0, "the last learning rate over the peak", refusal="final_fraction must be from 0 to 1, got {value}"
    )


OPTIONS = {"cosine_with_warmup": CosineOptions}
