"""`model.weights` and `model.weights_key`: the state dict of a file that a run starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.here import train


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Weights and their averages, as timm saves them."""
    from syncbn.models.mlp import MLP

    state = {key: torch.zeros_like(value) for key, value in MLP(num_classes=10, image_size=8).state_dict().items()}
    average = {key: value + 1 for key, value in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": average}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@pytest.mark.parametrize(("key", "value"), [(None, 0.0), ("state_dict", 0.0), ("state_dict_ema", 1.0)])
def test_the_key_chooses(key: str | None, value: float, file: Path, tmp_path: Path, capsys: Any) -> None:
    chosen = [] if key is None else [f"model.weights_key={key}"]
    steps = ["trainer.max_steps=1", "optimizer.lr=1e-30", "test=false", "callbacks=last_checkpoint"]
    run = train(tmp_path, "run", "norm=batch", f"model.weights={file}", *chosen, *steps)
    assert f"its {key or 'state_dict'} (there are key=" in capsys.readouterr().out
    state = run.checkpoint()["state_dict"]
    assert float(state["net.fc.weight"].mean()) == pytest.approx(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["model.weights_key=state_dict_ema"],
            r"model.weights_key=state_dict_ema chooses in a file .*: add model.weights",
        ),
        (
            ["model.weights={file}", "model.weights_key=ema"],
            r"has no state_dict 'ema'; allowed: .*, which is model.weights_key",
        ),
    ],
)
def test_mistakes_are_answered(options: list[str], message: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message):
        train(tmp_path, "run", *(option.format(file=file) for option in options))
