"""Labels that are no class, in any batch of any stage."""

import pytest
import torch

from tests.training import fits


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
@pytest.mark.parametrize("label", [-100, -1, 10, 255])
def test_labels_that_are_no_class_are_refused(step: str, label: int) -> None:
    """Torch leaves -100 out, so that it would count as a loss of 0 and as a wrong answer."""
    module = fits.task(label_smoothing=0.1)
    with pytest.raises(ValueError, match=rf"labels must be 0 to 9.* got {min(label, 3)} to {max(label, 3)}: leave"):
        getattr(module, step)((torch.zeros(2, 1, 8, 8), torch.tensor([3, label])), 0)
