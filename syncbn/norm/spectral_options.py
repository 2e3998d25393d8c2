"""Options of `spectral`."""

from dataclasses import dataclass

from syncbn.norm.core.options import Count, option


@dataclass
class SpectralNormOptions:
    """Spectral normalization (Miyato et al. 2018): preceding convolution over its largest singular value."""

    n_power_iterations: Count = option(1, "steps of power iteration in each training forward pass")
    bias: bool = option(True, "whether there is β, per channel")


OPTIONS = {"spectral": SpectralNormOptions}
