"""Options of `spectral`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class SpectralNormOptions:
    """Spectral normalization (Miyato et al. 2018): preceding convolution over its largest singular value."""

    n_power_iterations: Count = option(1, "steps of the power iteration at each forward pass in training")
    bias: bool = option(True, "whether there is β, per channel")


OPTIONS = {"spectral": SpectralNormOptions}
