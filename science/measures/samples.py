"""Samples of a trained generator."""

import matplotlib.image

from science.measures.training import fit
from science.runs import Setting
from syncbn.run.fit import test
from syncbn.training.callbacks import sample_grids

_ROWS = 8


def samples(setting: Setting) -> dict[str, float]:
    """Measure all metrics that `GANTask` logs, and draw a grid of samples as the run's picture."""
    fitted = fit(setting.config, setting.world)
    if setting.picture is not None:
        setting.picture.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(setting.picture, sample_grids.samples(fitted.task, _ROWS).numpy())
    return test(fitted)
