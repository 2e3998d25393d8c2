"""The widgets of docs/explorer.html: their numbers, against PyTorch and this package's layers."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syncbn.norm.core.momentum import from_keras
from tests.docs.explorer import call, carried, expected, shown, slide

pytestmark = pytest.mark.usefixtures("float64")
NORMS = ["BN", "SyncBN", "CBN", "GN", "LN", "IN", "RMS"]


def test_one_value(explorer: Any) -> None:
    for seed in range(10):
        pick = random.Random(seed)
        x, gamma, beta, rate = (round(pick.uniform(*limits), 2) for limits in ((-6, 6), (-3, 3), (-3, 3), (0, 1)))
        power, size, spread = round(pick.uniform(-8, 1), 1), pick.randint(2, 24), round(pick.uniform(0, 3), 2)
        slide(explorer, x=x, gamma=gamma, beta=beta, rate=rate, eps=power, size=size, centre=1.5, spread=spread)
        if seed % 2:
            explorer.get_by_role("button", name="Draw other values").click()
        values = torch.tensor(json.loads(explorer.locator("#value-chart").get_attribute("data-values")))
        assert len(values) == size
        assert values[0] == x

        norm = nn.BatchNorm1d(1, eps=10**power, momentum=rate)
        nn.init.constant_(norm.weight, gamma)
        nn.init.constant_(norm.bias, beta)
        y, plain = norm(values[:, None]), F.batch_norm(values[:, None], None, None, training=True, eps=10**power)
        numbers = shown(explorer, "#value-formulas")
        assert numbers["y"] == pytest.approx(y[0].item(), abs=1e-6)
        assert numbers["xhat"] == pytest.approx(plain[0].item(), abs=1e-6)
        assert numbers["mu"] == pytest.approx(values.mean().item(), abs=1e-6)
        assert numbers["var"] == pytest.approx(values.var(correction=0).item(), abs=1e-6)
        assert numbers["runningMean"] == pytest.approx(norm.running_mean.item(), abs=1e-6)
        assert numbers["runningVar"] == pytest.approx(norm.running_var.item(), abs=1e-6)


def test_one_value_alone_is_explained(explorer: Any) -> None:
    slide(explorer, size=1, x=4)
    assert shown(explorer, "#value-formulas")["xhat"] == 0
    assert "PyTorch refuses" in explorer.locator("#value-note").inner_text()
    slide(explorer, size=2)
    assert explorer.locator("#value-note").inner_text() == ""


def dragged(page: Any) -> Tensor:
    """Values of the batch, (sample, channel, position)."""
    handles = page.locator("#batch-chart [role=slider]")
    return torch.tensor(handles.evaluate_all("all => all.map(e => Number(e.ariaValueNow))")).reshape(4, 4, 3)


def panel(page: Any, norm: str) -> tuple[Tensor, Tensor]:
    """Contents of a panel: normalized values, and a mask of those in the selected value's moments."""
    marks = page.locator(f"#panel-{norm} .mark").evaluate_all(
        "all => all.map(e => [e.dataset.value, e.dataset.counts])"
    )
    values = torch.tensor([float(value) for value, _ in marks]).reshape(4, 4, 3)
    return values, torch.tensor([counts == "true" for _, counts in marks]).reshape(4, 4, 3)


def check_panels(page: Any, splits: list[int], groups: int, window: int = 4, change: float = 0.02) -> None:
    x, ones, zeros = dragged(page), torch.ones(4), torch.zeros(4)
    earlier = torch.tensor(json.loads(page.locator("#batch-chart").get_attribute("data-earlier")))
    steps = [(earlier[ago - 1], 1 - change * ago) for ago in range(window - 1, 0, -1)] + [(x, 1.0)]
    whole = F.batch_norm(x, None, None, training=True)
    for norm in NORMS:
        y, counts = panel(page, norm)
        ours = carried(steps, splits, 1e-5) if norm == "CBN" else expected(norm, x, splits, groups, 1e-5, ones, zeros)
        torch.testing.assert_close(y, ours, rtol=0, atol=1e-6)
        numbers = shown(page, f"#norm-{norm}")
        if norm in ("BN", "SyncBN", "CBN"):
            assert numbers["off"] == pytest.approx((y - whole).abs().max().item(), abs=1e-6)
        if norm not in ("CBN", "RMS"):
            assert numbers["count"] == counts.sum()
            assert numbers["mean"] == pytest.approx(x[counts].mean().item(), abs=1e-6)
            assert numbers["var"] == pytest.approx(x[counts].var(correction=0).item(), abs=1e-6)


@pytest.mark.parametrize(
    ("splits", "kind", "groups"),
    [
        ("4", "alike", 1),
        ("2 + 2", "two samples brighter", 2),
        ("3 + 1", "an outlier", 4),
        ("1 + 1 + 1 + 1", "a constant channel", 2),
    ],
)
def test_seven_norms_of_a_batch(explorer: Any, splits: str, kind: str, groups: int) -> None:
    explorer.get_by_role("group", name="Samples on each rank").get_by_label(splits, exact=True).check()
    explorer.get_by_label(kind, exact=True).check()
    explorer.get_by_role("group", name="Groups of GN").get_by_label(str(groups), exact=True).check()
    explorer.get_by_role("button", name="Draw another batch").click()
    slide(explorer, window=groups + 1, change=0.05)
    check_panels(explorer, [int(n) for n in splits.split("+")], groups, window=groups + 1, change=0.05)


def test_a_value_can_be_dragged_and_everything_follows(explorer: Any) -> None:
    before = dragged(explorer)
    handle = explorer.get_by_role("slider", name="Rank 1, sample 3, channel B, position 2")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    explorer.mouse.move(x, y)
    explorer.mouse.down()
    explorer.mouse.move(x, y - 30, steps=3)
    explorer.mouse.up()
    explorer.mouse.move(x, y + 60)  # let go: nothing moves any more
    after = dragged(explorer)
    changed = (after != before).nonzero().tolist()
    assert changed == [[2, 1, 1]]
    assert after[2, 1, 1] > before[2, 1, 1]
    assert "sample 3, channel B, position 2" in explorer.locator("#selected-name").inner_text()
    check_panels(explorer, [2, 2], 2)


def test_keys_move_values_and_go_to_others(explorer: Any) -> None:
    before = dragged(explorer)
    explorer.locator("#batch-chart [tabindex='0']").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowDown"):
        explorer.keyboard.press(key)
    explorer.keyboard.press("PageDown")
    moved = before.clone()
    moved[0, 0, 2] += 0.1 - 1
    torch.testing.assert_close(dragged(explorer), moved)
    explorer.keyboard.press("End")
    for _ in range(12):
        explorer.keyboard.press("PageUp")
    assert dragged(explorer)[3, 3, 2] == 5  # the end of the scale
    assert explorer.evaluate("document.activeElement.ariaLabel") == "Rank 1, sample 4, channel D, position 3"
    check_panels(explorer, [2, 2], 2)


@pytest.mark.parametrize(
    ("momentum", "keras", "step"), [(0.05, None, 60), (None, 0.7, 199), (0, None, 1), ("None", None, 33)]
)
def test_training_and_evaluation(explorer: Any, momentum: float | str | None, keras: float | None, step: int) -> None:
    slide(explorer, step=step, batch=5)
    if momentum == "None":
        explorer.get_by_label("average of all batches").check()
    elif keras is not None:
        slide(explorer, keras=keras)
        assert explorer.locator("#torch").input_value() == f"{1 - keras:.1f}"
    else:
        slide(explorer, torch=momentum)
        assert float(explorer.locator("#keras").input_value()) == pytest.approx(1 - momentum)
    rate = None if momentum == "None" else momentum if keras is None else from_keras(keras)

    norm = nn.BatchNorm1d(1, momentum=rate)
    batches = torch.tensor(json.loads(explorer.locator("#running-say").get_attribute("data-seen")))
    for batch in batches[:step]:
        norm(batch[:, None])
    numbers = shown(explorer, "#running-say")
    assert numbers["mean"] == pytest.approx(norm.running_mean.item(), abs=1e-6)
    assert numbers["var"] == pytest.approx(norm.running_var.item(), abs=1e-6)
    one, batch = torch.ones(1, 1), batches[step - 1]
    in_training = F.batch_norm(one, batch.mean()[None], batch.var(correction=0)[None])
    assert numbers["trained"] == pytest.approx(in_training.item(), abs=1e-6)
    assert numbers["evaluated"] == pytest.approx(norm.eval()(one).item(), abs=1e-6)
    assert numbers["steps"] == step


def test_play_goes_through_the_steps(explorer: Any) -> None:
    slide(explorer, step=190)
    explorer.get_by_role("button", name="Play").click()
    explorer.wait_for_function("document.querySelector('#step').value === '200'")
    explorer.get_by_role("button", name="Play").wait_for()
    assert shown(explorer, "#running-say")["steps"] == 200


def test_small_batches(explorer: Any) -> None:
    slide(explorer, local=2, ranks=4)
    explorer.get_by_role("button", name="Draw other batches").last.click()
    drawn = call(explorer, "draws", {"size": 2, "ranks": 4, "count": 2000, "seed": 6})
    numbers = shown(explorer, "#small-say")
    assert (numbers["alone"], numbers["together"]) == (2, 8)
    for name, end in (("alone", "Alone"), ("together", "Together")):
        mean, var, first = (torch.tensor([one[key] for one in drawn[name]]) for key in ("mean", "var", "first"))
        assert numbers[f"mean{end}"] == pytest.approx(mean.square().mean().sqrt().item(), abs=1e-6)
        assert numbers[f"var{end}"] == pytest.approx((var - 1).square().mean().sqrt().item(), abs=1e-6)
        assert numbers[f"tiny{end}"] == pytest.approx(100 * (var < 0.1).double().mean().item(), abs=1e-6)
        for chart, values, bins, (low, high) in (
            ("mean", mean, 40, (-2, 2)),
            ("var", var, 40, (0, 4)),
            ("first", first, 48, (-3, 3)),
        ):
            counts = explorer.locator(f"#hist-{chart} [data-set={name}]").get_attribute("data-counts").split()
            inside = values.clamp(low, high - 1e-12)
            assert [int(count) for count in counts] == np.histogram(inside, bins, (low, high))[0].tolist()
        assert (first.abs().sub(1).abs() < 0.01).double().mean() > 0.95 or name == "together"
    assert explorer.locator("#small-all").is_visible()
    slide(explorer, ranks=1)
    assert not explorer.locator("#small-all").is_visible()
    assert explorer.locator("#hist-mean [data-set=together]").count() == 0
