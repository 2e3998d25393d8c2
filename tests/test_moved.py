"""Paths of version 0.1 still work, in configs, pickles and imports."""

import importlib
import pickle

import pytest

from syncbn.moved import MOVED, homes_of, renamed

# Names of version 0.1 in modules that were split.
SPLIT = {
    "syncbn.norm.batch_free": ("GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm", "no_norm"),
    "syncbn.norm.dynamic": ("DynamicErf", "DynamicTanh"),
    "syncbn.norm.reparametrized": ("Reparametrizing", "SpectralNorm", "WeightNorm"),
    "syncbn.run_folder": ("load_config", "load_run", "load_weights"),
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_is_a_module_whose_homes_exist(old: str) -> None:
    assert importlib.import_module(old).__name__ == old
    for home in homes_of(old):
        importlib.import_module(home)


def test_all_that_became_several_is_listed_here() -> None:
    assert {old for old in MOVED if len(homes_of(old)) > 1} == SPLIT.keys()


@pytest.mark.parametrize(("old", "name"), [(old, name) for old, names in SPLIT.items() for name in names])
def test_a_name_of_a_module_that_was_divided_is_found(old: str, name: str) -> None:
    found = getattr(importlib.import_module(old), name)
    assert found.__name__ == name
    assert found.__module__ in homes_of(old)
    by_pickle = pickle.loads(f"c{old}\n{name}\n.".encode())  # as a pickle of version 0.1 names a class
    assert by_pickle is found


def test_a_name_that_is_nowhere_says_where_it_was_looked_for() -> None:
    with pytest.raises(AttributeError, match=r"now syncbn.norm.dynamic_tanh and syncbn.norm.dynamic_erf, has no .*'Dy"):
        _ = importlib.import_module("syncbn.norm.dynamic").Dynamic
    with pytest.raises(ImportError):
        from syncbn.norm.batch_free import BatchNorm  # noqa: F401


def test_dotted_names_are_renamed() -> None:
    assert (
        renamed("syncbn.training.task.ClassificationTask") == "syncbn.training.tasks.classification.ClassificationTask"
    )
    assert renamed("syncbn.training.ClassificationTask") == "syncbn.training.ClassificationTask"
    assert renamed("syncbn.norm.dynamic.DynamicTanh") == "syncbn.norm.dynamic_tanh.DynamicTanh"
