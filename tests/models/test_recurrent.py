"""LSTM and GRU against torch's and the formulas, with any padding, on ranks with different lengths, and on digits."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import syncbn
from syncbn.data import DigitsDataModule
from syncbn.models.recurrent import GRU, LSTM, gru, lstm
from tests.ranks import Ranks

INPUT, HIDDEN = 3, 4
NORMS = ["recurrent", "none", "layer"]
LENGTHS = torch.tensor([5, 2, 1, 5, 4])


def sequences(seed: int = 0, length: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(LENGTHS), length, INPUT, dtype=torch.float64, generator=generator)


def network(kind: type[nn.Module], norm: str) -> Any:
    torch.manual_seed(0)
    net = kind(INPUT, HIDDEN, norm).double()
    for name, parameter in net.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return net


def last(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def step(net: Any, x: Tensor, lengths: Tensor | None) -> dict[str, Any]:
    """All results of a training step, for a loss over outputs and last states."""
    x = x.clone().requires_grad_()
    output, state = net(x, lengths)
    weights = torch.arange(1.0, HIDDEN + 1)
    loss = (output * weights).square().sum() + sum((part * weights).sum() for part in last(state))
    net.zero_grad()
    loss.backward()
    return {
        "output": output.detach(),
        "state": tuple(part.detach() for part in last(state)),
        "dx": x.grad,
        "grads": {name: p.grad.clone() for name, p in net.named_parameters()},
        "buffers": {name: b.clone() for name, b in net.named_buffers()},
    }


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("kind", "theirs"), [(LSTM, nn.LSTM), (GRU, nn.GRU)])
def test_without_a_norm_it_is_torchs(kind: type[nn.Module], theirs: type[nn.Module], padded: bool) -> None:
    ours, reference = network(kind, "none"), theirs(INPUT, HIDDEN, batch_first=True).double()
    names = {
        "weight_ih_l0": "from_input.weight", "weight_hh_l0": "from_hidden.weight",
        "bias_ih_l0": "from_input.bias", "bias_hh_l0": "from_hidden.bias",
    }  # fmt: skip
    reference.load_state_dict({name: ours.state_dict()[other] for name, other in names.items()})
    x = sequences()
    output, state = ours(x, LENGTHS if padded else None)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False) if padded else x
    expected, expected_state = reference(packed)
    if padded:
        expected, _ = pad_packed_sequence(expected, batch_first=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(last(state), tuple(part[0] for part in last(expected_state)))
    output.square().sum().backward()
    expected.square().sum().backward()
    for name, other in names.items():
        torch.testing.assert_close(ours.get_parameter(other).grad, reference.get_parameter(name).grad)


def by_formula(net: Any, x: Tensor, lengths: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
    """h of every sequence after each of its steps, and the means of the input's activations at each step.

    Running sequences are batched again at each step, without padding.
    """

    def norm(layer: nn.Module, values: Tensor) -> Tensor:
        centred = values - values.mean(0)
        return centred / (centred.square().mean(0) + 1e-5).sqrt() * layer.weight + layer.bias

    h = [torch.zeros(HIDDEN, dtype=torch.float64) for _ in x]
    c = list(h)
    outputs: list[list[Tensor]] = [[] for _ in x]
    means = []
    for t in range(int(lengths.max())):
        going_on = [n for n in range(len(x)) if t < lengths[n]]
        inputs = torch.stack([x[n, t] for n in going_on]) @ net.from_input.weight.T
        hidden = torch.stack([h[n] for n in going_on]) @ net.from_hidden.weight.T
        means.append(inputs.mean(0).detach())
        a, b = norm(net.input_norm, inputs), norm(net.hidden_norm, hidden)
        if isinstance(net, LSTM):
            i, f, g, o = (a + b).split(HIDDEN, dim=1)
            cells = torch.sigmoid(f) * torch.stack([c[n] for n in going_on]) + torch.sigmoid(i) * torch.tanh(g)
            new = torch.sigmoid(o) * torch.tanh(norm(net.cell_norm, cells))
        else:
            (r, z, n_x), (r_h, z_h, n_h) = a.split(HIDDEN, dim=1), b.split(HIDDEN, dim=1)
            update = torch.sigmoid(z + z_h)
            candidate = torch.tanh(n_x + torch.sigmoid(r + r_h) * n_h)
            cells = new = (1 - update) * candidate + update * torch.stack([h[n] for n in going_on])
        for row, n in enumerate(going_on):
            h[n], c[n] = new[row], cells[row]
            outputs[n].append(new[row])
    return outputs, means


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_recurrent_batch_norm_equals_the_formula(kind: type[nn.Module]) -> None:
    net, x = network(kind, "recurrent"), sequences()
    lengths = torch.tensor([5, 2, 3, 5, 4])  # two go on to the end: one alone has no variance
    output, _ = net(x, lengths)
    grads = torch.autograd.grad(output.square().sum(), list(net.parameters()))
    running_mean = net.input_norm.running_mean.clone()
    expected, means = by_formula(net, x, lengths)
    for n, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(output[n, :length], torch.stack(expected[n]))
        assert not output[n, length:].any()
    loss = sum(torch.stack(outputs).square().sum() for outputs in expected)
    for grad, target in zip(grads, torch.autograd.grad(loss, list(net.parameters())), strict=True):
        torch.testing.assert_close(grad, target)
    torch.testing.assert_close(running_mean[:5], 0.1 * torch.stack(means))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_padding_never_changes_a_result(kind: type[nn.Module], norm: str) -> None:
    x = sequences()
    masks = torch.arange(5) < LENGTHS[:, None]
    longer = torch.full((len(x), 9, INPUT), float("nan"), dtype=torch.float64)
    longer[:, :5] = x.masked_fill(~masks[..., None], float("inf"))
    nets = [network(kind, norm) for _ in range(2)]
    for _ in range(2):
        plain, padded = step(nets[0], x, LENGTHS), step(nets[1], longer, LENGTHS)
        for result in (plain, padded):
            assert not result["output"][:, :5][~masks].any()
            assert not result["dx"][:, :5][~masks].any()
        assert not padded["output"][:, 5:].any()
        for name in ("output", "dx"):
            padded[name] = padded[name][:, :5]
        torch.testing.assert_close(padded, plain)
    (output, state), (expected, expected_state) = nets[1].eval()(longer, LENGTHS), nets[0].eval()(x, LENGTHS)
    torch.testing.assert_close((output[:, :5], state), (expected, expected_state))
    for n, length in enumerate(LENGTHS.tolist()):  # and without any padding, one by one
        alone, state = nets[0](x[n : n + 1, :length])
        torch.testing.assert_close(alone[0], expected[n, :length])
        torch.testing.assert_close(last(state)[0][0], last(expected_state)[0][n])


def test_a_sequence_of_no_steps() -> None:
    net, x = network(LSTM, "recurrent"), sequences()
    some = step(net, x[:4], torch.tensor([5, 0, 0, 5]))
    assert not some["output"][1:3].any()
    assert not some["state"][0][1:3].any()
    other = step(network(LSTM, "recurrent"), x[[0, 3]], None)
    torch.testing.assert_close(some["output"][[0, 3]], other["output"])


# Rank 0 has the longest sequence, rank 2 none.
SHARES = (slice(0, 2), slice(2, 5), slice(0, 0))


def step_on_rank(kind: type[nn.Module], norm: str, outputs_alone: bool) -> dict[str, Any]:
    rows = SHARES[dist.get_rank()]
    lengths = torch.tensor([5, 2, 1, 3, 3])[rows]
    length = int(lengths.max()) if len(lengths) else 1
    net, x = network(kind, norm), sequences()[rows, :length]
    if outputs_alone:  # no gradient comes by the last state, which other ranks' steps lead to
        net(x, lengths)[0].sum().backward()
        return {"grads": {name: p.grad for name, p in net.named_parameters()}}
    return step(net, x, lengths)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_ranks_of_other_lengths_equal_one_process(kind: type[nn.Module], ranks: Callable[[int], Ranks]) -> None:
    lengths = torch.tensor([5, 2, 1, 3, 3])
    expected = step(network(kind, "recurrent"), sequences(), lengths)
    results = ranks(3).run(step_on_rank, kind, "recurrent", False)
    for rank, rows in zip(results, SHARES, strict=True):
        length = rank["output"].shape[1]
        torch.testing.assert_close(rank["output"], expected["output"][rows, :length])
        torch.testing.assert_close(rank["dx"], expected["dx"][rows, :length])
        torch.testing.assert_close(rank["buffers"], expected["buffers"])
    for name, grad in expected["grads"].items():
        torch.testing.assert_close(sum(rank["grads"][name] for rank in results), grad)


@pytest.mark.distributed
def test_ranks_wait_for_each_other_when_the_outputs_alone_are_used(ranks: Callable[[int], Ranks]) -> None:
    net = network(LSTM, "recurrent")
    net(sequences(), torch.tensor([5, 2, 1, 3, 3]))[0].sum().backward()
    results = ranks(3).run(step_on_rank, LSTM, "recurrent", True)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(sum(rank["grads"][name] for rank in results), parameter.grad)


@pytest.fixture(scope="module")
def digits() -> DigitsDataModule:
    return DigitsDataModule(augment=False)


@pytest.mark.parametrize(("build", "norm"), [(lstm, "recurrent"), (lstm, "none"), (gru, "recurrent")])
def test_it_learns_to_read_digits_row_by_row(
    digits: DigitsDataModule, build: Callable[..., nn.Module], norm: str
) -> None:
    torch.manual_seed(0)
    net = build(norm)
    images, labels = (t[digits.train_indices] for t in (digits.images, digits.labels))
    epochs, batch = 12, 64
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=epochs * (len(images) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    test = digits.test_indices
    accuracy = (net.eval()(digits.images[test]).argmax(1) == digits.labels[test]).double().mean()
    assert accuracy >= 0.95


def test_biases_are_where_the_norm_has_none() -> None:
    for norm, bias in (("recurrent", False), ("layer", False), ("none", True), ("rms", True)):
        net = LSTM(INPUT, HIDDEN, norm)
        assert (net.from_input.bias is not None) == (net.from_hidden.bias is not None) == bias


def test_images_of_any_size_and_checkpoints() -> None:
    net = lstm("layer", num_classes=3, in_channels=2, image_size=(5, 7), hidden_size=6)
    x = torch.randn(4, 2, 5, 7)
    logits = net(x)
    assert logits.shape == (4, 3)
    assert not torch.allclose(net(x.flip(2)), logits), "the order of the rows counts"
    twin = lstm("layer", num_classes=3, in_channels=2, image_size=(5, 7), hidden_size=6)
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    torch.testing.assert_close(twin(x), logits, rtol=0, atol=0)


X = torch.randn(2, 5, INPUT)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: LSTM(INPUT, HIDDEN, "sync"),
            ValueError,
            "all time steps would share .* SyncBatchNorm.*norm=recurrent",
        ),
        (lambda: GRU(INPUT, HIDDEN, nn.BatchNorm1d), ValueError, "all time steps would share"),
        (lambda: LSTM(INPUT, HIDDEN, "weight"), ValueError, "acts on the layer before it"),
        (lambda: LSTM(INPUT, 0), ValueError, "hidden_size must be at least 1"),
        (lambda: LSTM(INPUT, HIDDEN)(X[0]), ValueError, r"expected an input \(N, T, 3\)"),
        (lambda: LSTM(INPUT, HIDDEN)(X[:, :0]), ValueError, "with T at least 1"),
        (lambda: LSTM(INPUT, HIDDEN)(X.long()), TypeError, "floating-point"),
        (lambda: LSTM(INPUT, HIDDEN)(X, torch.tensor([5, 6])), ValueError, r"from 0 to T = 5, got \[5, 6\]"),
        (lambda: LSTM(INPUT, HIDDEN)(X, torch.tensor([5, -1])), ValueError, "from 0 to T = 5"),
        (lambda: LSTM(INPUT, HIDDEN)(X, torch.tensor([5])), ValueError, r"lengths must have shape \(N,\) = \(2,\)"),
        (lambda: LSTM(INPUT, HIDDEN)(X, torch.tensor([5.0, 2.0])), TypeError, "lengths must be integers"),
        (lambda: gru()(torch.randn(2, 1, 8, 9)), ValueError, r"expected images of \(8, 8\) pixels"),
    ],
)
def test_mistakes(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_norms_take_options() -> None:
    net = LSTM(INPUT, HIDDEN, syncbn.norm_layer("recurrent", max_length=6, gamma_init=0.2))
    assert net.cell_norm.running_mean.shape == (6, HIDDEN)
    assert net.hidden_norm.weight.tolist() == pytest.approx([0.2] * 4 * HIDDEN)
