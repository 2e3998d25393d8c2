"""Any `nn.Module` as the network, for data of anybody's: what it is given, and what becomes of its batch norms."""

from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import syncbn
from syncbn.run import build, fit, start, tasks
from syncbn.run.compose import config_of as config_of_run
from syncbn.run.errors import UserError, user_mistakes
from syncbn.run.facts import DataFacts
from syncbn.run.network import described_norm
from tests.run import guest_package
from tests.run.guest_package import CHANNELS, CLASSES, SIZE
from tests.run.here import ALONE

HOME = "tests.run.guest_package"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("SYNCBN_ALLOWED_PACKAGES", HOME)
    monkeypatch.setenv("SYNCBN_RUN_ID", "test")
    monkeypatch.setenv("SYNCBN_OUTPUT_ROOT", str(tmp_path))
    torch.manual_seed(0)  # of the first batch


def config_of(model: str = "Net", data: str = "Data", *overrides: str, **arguments: Any) -> DictConfig:
    """The config of a network and data of the guest's, with arguments of the network."""
    config = config_of_run(overrides)
    target = model if "." in model else f"{HOME}.{model}"
    config.model = {"_target_": target, **arguments}
    config.data = {"_target_": data if "." in data else f"{HOME}.{data}"}
    return config


def network_of(*args: str, **arguments: Any) -> Any:
    config = config_of(*args, **arguments)
    return build.build_network(config, build.build_data(config))


def norms(net: nn.Module) -> list[str]:
    """The classes of the layers that stand where batch norms stood."""
    return [type(module).__name__ for module in net.modules() if "conversion" in module.__dict__]


@pytest.mark.parametrize("norm", ["sync", "batch_renorm", "ghost", "frozen", "layer", "filter_response", "rms"])
def test_the_batch_norms_of_any_network_are_converted(norm: str) -> None:
    net = network_of("Net", "Data", f"norm={norm}")
    expected = syncbn.convert(guest_package.Net(), norm)
    assert norms(net) == norms(expected)
    assert len(norms(net)) == 2
    assert {name: value.shape for name, value in net.state_dict().items()} == {
        name: value.shape for name, value in expected.state_dict().items()
    }


def test_options_of_the_config_are_the_norms_and_the_networks_own_stay() -> None:
    net = network_of("Net", "Data", "norm=sync")
    assert (net.norm.eps, net.norm.momentum) == (1e-3, 0.01)
    net = network_of("Net", "Data", "norm=sync", "norm.momentum=0.3")
    assert (net.norm.eps, net.norm.momentum) == (1e-3, 0.3)
    net = network_of("Net", "Data", "norm=sync", "norm.keras_momentum=0.75")
    assert net.norm.momentum == 0.25


def test_include_and_exclude_choose_among_them() -> None:
    assert len(norms(network_of("Net", "Data", "norm.exclude=head.*"))) == 1
    net = network_of("Net", "Data", "norm.include=[head.*]")
    assert "conversion" not in net.norm.__dict__
    assert "conversion" in net.head[1].__dict__
    with pytest.raises(ValueError, match=r"no normalization layer is named 'hade.\*'; this model has: norm, head.1"):
        network_of("Net", "Data", "norm.include=[hade.*]")
    with pytest.raises(ValueError, match=r"norm.exclude choose among the batch norms of a finished network, and"):
        network_of("TakesNorm", "Data", "norm.exclude=head.*", num_classes=3)


def test_a_network_that_takes_a_norm_is_given_it() -> None:
    net = network_of("TakesNorm", "ByProperty", "norm=group", "norm.groups=2")
    assert isinstance(net.layers[1], nn.GroupNorm)
    assert net.layers[1].num_groups == 2
    assert norms(net) == []


@pytest.mark.parametrize(
    "data", ["ByArrays", "ByAttribute", "ByDataset", "ByHyperParameter", "ByProperty", "NeedsSetupFirst"]
)
def test_sizes_are_those_of_the_data_in_whatever_way_it_says_them(data: str) -> None:
    config = config_of("Asks", data)
    net: Any = build.build_network(config, build.build_data(config))
    assert (net.head[-1].out_features, net.conv.in_channels, net.image_size) == (CLASSES, CHANNELS, (SIZE, SIZE))
    said = OmegaConf.to_container(config.model)
    assert said == {
        "_target_": f"{HOME}.Asks",
        "num_classes": CLASSES,
        "in_channels": CHANNELS,
        "image_size": [SIZE, SIZE],
    }  # in the run's folder too, where the data need not be looked at again


def test_the_config_goes_before_the_data() -> None:
    assert network_of("Net", "ByAttribute", num_classes=7).head[-1].out_features == 7


def test_a_method_of_the_name_says_nothing() -> None:
    data = build.build_data(config_of("Net", "ByMethod"))
    assert DataFacts(data).num_classes is None
    assert DataFacts(build.build_data(config_of("Net", "ByArrays"))).class_names == ["a", "b", "c"]


def test_a_guests_own_error_is_told_with_its_line() -> None:
    told = r"^TypeError: object of type 'int' has no len\(\) \(.*guest_package.py, line"
    with pytest.raises(UserError, match=told), user_mistakes():
        network_of("Fails", "Data")


def test_a_network_that_returns_more_in_training_is_told() -> None:
    task, *_ = task_of("ReturnsMoreInTraining", "Data")
    with pytest.raises(
        TypeError, match=r"ReturnsMoreInTraining returns a tuple in training, and ClassificationTask tak"
    ):
        task.train().training_step(guest_package.images(), 0)


def test_a_module_that_sets_a_seed_of_its_own_leaves_the_runs(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so when it is imported, which is once; the second network is built without that."""
    (tmp_path / "seeding.py").write_text(
        "import torch\nfrom tests.run.guest_package import Net as Net\ntorch.manual_seed(1)\n"
        "class Mine(Net):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SYNCBN_ALLOWED_PACKAGES", f"{HOME},seeding")
    first, second = (fit.prepare(config_of("seeding.Mine"), ALONE).net.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_size_that_nobody_says_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"asks for num_classes, which neither Data nor its first batch says: add \+model"
    ):
        network_of("Asks", "Data")
    assert network_of("Net", "Data").head[-1].out_features == CLASSES  # its own default


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("factory", {}),
        ("factory", {"num_classes": 3, "width": 8}),
        ("create_model", {"name": "net"}),
        ("create_model", {"name": "net", "in_channels": 2}),
        ("by_place", {"_args_": [3, 4]}),
        ("narrow", {}),
        ("Lazy", {}),
        ("Branches", {}),
    ],
)
def test_functions_and_partials_are_given_what_they_name_alone(model: str, arguments: dict[str, Any]) -> None:
    net = network_of(model, "Data", **arguments)
    assert norms(net)
    assert net(guest_package.images()[0]).shape == (24, CLASSES)


def test_layers_in_a_list_are_a_network() -> None:
    layers = [
        {"_target_": "torch.nn.Conv2d", "in_channels": CHANNELS, "out_channels": 4, "kernel_size": 3},
        {"_target_": "torch.nn.BatchNorm2d", "num_features": 4},
        {"_target_": "torch.nn.Flatten"},
        {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": CLASSES},
    ]
    assert norms(network_of("torch.nn.Sequential", "Data", _args_=layers)) == ["SyncBatchNorm"]


def test_arguments_by_our_names_with_another_meaning_are_the_networks_own() -> None:
    net = network_of("OwnMeaning", "Data", norm="layer", weights="theirs", pretrained=True)
    assert net.said == ("layer", "theirs", True)
    assert len(norms(net)) == 2
    config = config_of("OwnMeaning", "Data", norm="layer", weights="theirs", pretrained=True)
    data = build.build_data(config)
    assert build.load_pretrained(config, net) is None  # weights= isn't a file of ours
    again: Any = build.build_network(config, data, fetch_weights=False)
    assert again.said == ("layer", None, False)


def test_plain_values_by_our_names_are_the_networks_and_the_tasks_own() -> None:
    net = network_of("ChoosesByName", "Data", "norm=ghost")
    assert net.said == ("batch", SIZE // 2)
    assert norms(net) == ["GhostBatchNorm"] * 2
    config = config_of("Net", "Data", "norm=ghost")
    config.task = {"_target_": f"{HOME}.ByNames"}
    assert not tasks.asks_for_network(config)
    task: Any = build.build_task(config, None, build.build_data(config))
    assert task.said == ("net", "adam", False)
    assert norms(task) == ["GhostBatchNorm"] * 2


def test_a_network_without_batch_norms_is_left_as_it_is_and_said_to_be() -> None:
    config = config_of("NoNorm", "Data")
    net = build.build_network(config, build.build_data(config))
    assert norms(net) == []
    assert described_norm(config, net) == "no batch norm, so that norm=sync changes nothing"
    config = config_of("Net", "Data", "norm=ghost")
    assert described_norm(config, build.build_network(config, build.build_data(config))) == (
        "norm=ghost in the place of 2 batch norm(s)"
    )
    config = config_of("TakesNorm", "ByProperty")
    assert described_norm(config, build.build_network(config, build.build_data(config))) == "norm=sync"


def test_a_layer_that_converting_would_harm_is_named() -> None:
    with pytest.raises(ValueError, match=r"OwnForward has a forward of its own, .* exclude="):
        network_of("WithOwnForward", "Data")
    assert len(norms(network_of("WithOwnForward", "Data", "norm.exclude=norm"))) == 1


@pytest.mark.parametrize("model", ["Net", "Branches"])
@pytest.mark.parametrize("norm", ["cross_iteration", "weight", "spectral"])
def test_norms_that_act_on_the_layer_before_find_it_by_the_first_batch(model: str, norm: str) -> None:
    net = network_of(model, "Data", f"norm={norm}")
    waiting = [module for module in net.modules() if hasattr(module, "attach")]
    assert len(waiting) == 2
    assert all(module.is_attached for module in waiting)


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # Lightning's, of torch
@pytest.mark.parametrize(
    "data",
    [
        "Data",
        "OfNamedTuples",
        "OfThree",
        "OfStream",
        "OfWholeBatches",
        "OfSeveral",
        "Combined",
        "Converted",
        "ByAttribute",
    ],
)
def test_a_first_batch_of_any_kind_shows_the_sizes(data: str) -> None:
    facts = DataFacts(build.build_data(config_of("Net", data)))
    assert (facts.in_channels, facts.image_size) == (CHANNELS, (SIZE, SIZE))
    example = facts.example
    assert isinstance(example, Tensor)
    assert example.is_floating_point()
    assert guest_package.Net().eval()(example).shape[1] == CLASSES


def test_what_is_no_pair_shows_none() -> None:
    facts = DataFacts(build.build_data(config_of("Net", "OfDicts")))
    assert (facts.in_channels, facts.image_size, facts.example) == (None, None, None)
    assert set(facts.first_batch) == {"image", "label"}


def test_to_look_leaves_random_numbers_alone_and_prepares_the_data_first() -> None:
    data: Any = build.build_data(config_of("Net", "Data"))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert DataFacts(data).in_channels == CHANNELS
    assert torch.equal(torch.rand(2), expected)
    assert data.prepared == 1


def test_data_is_set_up_by_keyword_as_lightning_does() -> None:
    assert DataFacts(guest_package.ByKeyword()).in_channels == CHANNELS


@pytest.mark.parametrize("override", ["trainer.max_steps=5", "+trainer.limit_train_batches=5", "~scheduler"])
def test_data_without_a_length_is_taken_where_the_steps_are_known(override: str) -> None:
    task, config, module = task_of("Net", "OfStream", override)
    trainer: Any = type("Trainer", (), {"world_size": 1})()
    start.check_start(config, task, module, trainer)


def test_data_that_says_all_is_not_looked_at() -> None:
    facts = DataFacts(build.build_data(config_of("Net", "ByAttribute")))  # its setup fails
    assert (facts.num_classes, facts.in_channels, facts.image_size) == (CLASSES, CHANNELS, (SIZE, SIZE))
    assert facts.class_names == ["a", "b", "c"]
    assert facts.example is not None


def test_data_that_can_not_be_looked_at_says_why() -> None:
    with pytest.raises(
        ValueError, match=r"can't make a first batch of Broken, .*: FileNotFoundError: no such file: images"
    ):
        network_of("Asks", "Broken")


def task_of(*args: str, **arguments: Any) -> Any:
    config = config_of(*args, **arguments)
    data = build.build_data(config)
    net = build.build_network(config, data)
    return build.build_task(config, net, data), config, data


@pytest.mark.parametrize(
    ("data", "classes", "names"),
    [
        ("Data", 3, ("0", "1", "2")),
        ("ByAttribute", 3, ("a", "b", "c")),
        ("ByAttribute", 5, ("a", "b", "c", "3", "4")),
        ("ByDataset", 3, ("ant", "bee", "cat")),
    ],
)
def test_the_number_of_classes_is_that_of_the_logits(data: str, classes: int, names: tuple[str, ...]) -> None:
    task, *_ = task_of("Net", data, num_classes=classes)
    assert task.class_names == names
    assert task.test_confusion.num_classes == classes


@pytest.mark.parametrize(
    ("model", "data", "arguments", "message"),
    [
        ("Net", "OfDicts", {}, "Net returns no logits .* of a pair"),
        ("ReturnsDict", "Data", {}, "ReturnsDict returns no logits"),
        ("ReturnsDict", "ByArrays", {}, "ReturnsDict returns no logits"),
        (
            "Net",
            "Data",
            {"in_channels": 5},
            r"Net can't take inputs \(4, 2, 6, 6\), as the data has them: RuntimeError",
        ),
    ],
)
def test_what_does_not_go_together_is_told_before_training(
    model: str, data: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(model, data, **arguments)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ("OfThree", {}, r"takes batches \(images, labels\), and OfThree gives a list of Tensor, Tensor, Tensor: let"),
        ("OfFloats", {}, r"labels of 1 dimension\(s\) and of whole numbers, and OfFloats gives float32 \(4,\)"),
        ("FourClasses", {"num_classes": 3}, "the network returns 3 logits, and FourClasses has 4 classes"),
        ("Data", {"num_classes": 2}, "the network returns 2 logits, and Data has 3 classes: give the network as many"),
        ("OfInt32", {}, r"of whole numbers, and OfInt32 gives int32 \(4,\): give labels.long\(\)"),
        ("OfIgnored", {}, r"labels of 0, 1, 2, ..., and OfIgnored gives -100: leave such samples out of the data"),
        ("WithTwoValidations", {}, r"WithTwoValidations.val_dataloader\(\) returns 2 loaders, and the task takes one"),
        ("WithNoValidation", {}, r"WithNoValidation.val_dataloader\(\) returns no loader, and the task takes one"),
        (
            "OfSeveral",
            {},
            r"OfSeveral.train_dataloader\(\) returns 2 loader\(s\) together, and the task takes one: join",
        ),
        ("OfStream", {}, r"OfStream.train_dataloader\(\) has no length: set trainer.max_steps or trainer.limit_train"),
        (
            "WithoutEvaluation",
            {},
            r"callbacks.checkpoint monitors val/loss, but WithoutEvaluation has no val_dataloader",
        ),
    ],
)
def test_data_that_the_task_does_not_take_is_told_before_training(
    data: str, arguments: dict[str, Any], message: str
) -> None:
    task, config, module = task_of("Net", data, **arguments)
    trainer: Any = type("Trainer", (), {"world_size": 1})()
    with pytest.raises(ValueError, match=message):
        start.check_start(config, task, module, trainer)
