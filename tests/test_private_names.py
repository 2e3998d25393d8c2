"""Private names of torch are used only in `norm/core/compat.py`, and those of Lightning only where a list allows it."""

import ast
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import nn

PACKAGE = Path(__file__).parents[1] / "syncbn"
COMPAT = {f"norm/core/{name}.py" for name in ("compat", "lookup", "private", "probes")}

# Documented ways to extend `nn.Module`, and the dictionaries that they concern.
EXTENSION_POINTS = {
    "_apply",
    "_buffers",
    "_load_from_state_dict",
    "_modules",
    "_parameters",
    "_save_to_state_dict",
}

# Private names of Lightning and torchmetrics, by the file that uses them.
LIGHTNING = {
    "run/screen.py": {"_MultiProcessingLauncher"},
    "run/stoppable.py": {"_MultiProcessingLauncher"},
    "training/callbacks/exact_resume.py": {"_collect_rng_states", "_set_rng_states", "_update_count"},
    "training/callbacks/last_checkpoint.py": {"_num_ready_batches_reached"},
    "training/callbacks/preemption.py": {
        "_broadcast_sigterm_tensor",
        "_can_stop_early",
        "_data_fetcher",
        "_is_training_done",
        "_iteration_based_training",
        "_num_ready_batches_reached",
        "_should_accumulate",
        "_should_check_val_fx",
        "_signal_connector",
    },
    "training/callbacks/share_loaders.py": {
        "_combined_loader",
        "_data_connector",
        "_data_fetcher",
        "_set_sampler_epoch",
    },
    "training/callbacks/watchdog.py": {"_timeout"},
    "training/epoch_sums.py": {
        "_Metadata",
        "_ResultMetric",
        "_Sync",
        "_first_loop_iter",
        "_logger_connector",
        "_results",
        "_update_count",
    },
    "training/loggers.py": {"_check_log_dir_exists", "_experiment", "_offline", "_wandb_init"},
    "training/monitored.py": {"_callback_metrics", "_logger_connector"},
    "training/owed_row.py": {"_batches_that_stepped", "_logger_connector", "_should_accumulate"},
    "training/strategy.py": {
        "_MultiProcessingLauncher",
        "_SubprocessScriptLauncher",
        "_combined_loader",
        "_configure_launcher",
        "_ddp_kwargs",
        "_get_process_group_backend",
        "_launcher",
        "_should_reload_train_dl",
        "_start_method",
        "_wrapping_function",
    },
    "training/undo.py": {"_computed", "_update_count"},
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_of(*objects: object) -> set[str]:
    """Private names of some objects and of their classes."""
    names = {name for thing in objects for name in (*dir(thing), *getattr(thing, "__dict__", {}))}
    return {name for name in names if is_private(name)}


@cache
def torch_attributes() -> frozenset[str]:
    modules = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Linear(1, 1), nn.LSTM(1, 1)
    others = torch.zeros(1), torch.optim.SGD(modules[0].parameters()), nn.parallel.DistributedDataParallel
    return frozenset((private_names_of(*modules, *others) | {"_orig_mod"}) - EXTENSION_POINTS)


@cache
def lightning_attributes() -> frozenset[str]:
    trainer = L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    loops = trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop
    connectors = trainer._logger_connector, trainer._signal_connector
    others = DDPStrategy(), _MultiProcessingLauncher, ExperimentWriter, torchmetrics.MeanMetric()
    loggers = (CSVLogger, WandbLogger)  # attributes are read from the source, since creating one starts a run
    assigned = {name for cls in loggers for name in names_assigned(ast.parse(inspect.getsource(cls)))}
    return frozenset(private_names_of(trainer, *loops, *connectors, *others, *loggers) | assigned) - torch_attributes()


def names_assigned(tree: ast.AST) -> set[str]:
    """Attributes that a file or a class defines on its own objects: by assignment, annotation or as a method."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return {name for name in found if is_private(name)}


def imported_from(package: str, tree: ast.AST) -> dict[str, str]:
    """Names that a file imports from a package, and their origin."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == package:
                    found[alias.asname or package] = alias.name if alias.asname else package
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return found


def private_uses(tree: ast.AST, packages: Iterable[str], attributes: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Find all uses of packages' private names in a file, with line numbers.

    - imported private modules and names, and private names of an imported module;
    - attributes and strings that are private names of the packages' objects, on any object, unless the file defines an
      attribute of that name on its own objects.
    """
    attributes = set(attributes) - names_assigned(tree)
    imported = {name: where for package in packages for name, where in imported_from(package, tree).items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] in packages]
            yield from ((part, node.lineno) for name in names for part in name.split(".") if is_private(part))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in packages:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((part, node.lineno) for part in parts if is_private(part))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            from_package = isinstance(root, ast.Name) and root.id in imported
            if node.attr in attributes or from_package:
                yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in attributes:
            yield node.value, node.lineno


def sources() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text())


def test_private_names_of_torch_are_in_compat_alone() -> None:
    found = [
        f"{file}:{line}: {name}"
        for file, tree in sources()
        if file not in COMPAT
        for name, line in private_uses(tree, ("torch",), torch_attributes())
    ]
    assert not found


def test_private_names_of_lightning_are_listed_by_file() -> None:
    found: dict[str, set[str]] = {}
    packages = ("lightning", "lightning_utilities", "torchmetrics")
    for file, tree in sources():
        if any(imported_from(package, tree) for package in packages):
            names = {name for name, _ in private_uses(tree, packages, lightning_attributes())}
            # Subclasses of Lightning's classes also have attributes of these names.
            names |= (
                (names_assigned(tree) | attributes_asked(tree)) & lightning_attributes() & LIGHTNING.get(file, set())
            )
            found.update({file: names} if names else {})
    assert found == LIGHTNING


def attributes_asked(tree: ast.AST) -> set[str]:
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch._C.f()",
        "import torch as t\nt.utils._pytree",
        "import torch.utils._pytree as pytree",
        "from torch.utils import _pytree as pytree",
        "from torch.utils._pytree import tree_map",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "import torch.distributed as dist\ndist.distributed_c10d._get_default_group()",
        "from torch import nn\nclass Norm(nn.modules.batchnorm._BatchNorm): pass",
        "def f(module):\n    return module._forward_hooks",
        "def f(conv, x):\n    return conv._conv_forward(x, conv.weight, None)",
        "def f(tensor):\n    return tensor._version",
        "def f(module):\n    return getattr(module, '_forward_pre_hooks')",
        "HOOKS = ('_backward_hooks',)",
        "def f():\n    import torch._dynamo",
        "class A:\n    def f(self):\n        return self._forward_hooks",
    ],
)
def test_private_uses_are_seen(source: str) -> None:
    assert list(private_uses(ast.parse(source), ("torch",), torch_attributes()))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.nn.functional.relu(x)",
        "class A:\n    def __init__(self):\n        self._version = 1\n    def f(self):\n        return self._version",
        "def f(module):\n    return module._parameters, module._buffers, module._modules",
        "class A:\n    def _apply(self, fn):\n        return super()._apply(fn)",
        "from syncbn.norm.core import compat\ncompat.pytree.tree_map(f, x)",
        "import os\nos._exit(1)",
        "import torch\n__version__ = torch.__version__",
    ],
)
def test_other_names_are_not(source: str) -> None:
    assert not list(private_uses(ast.parse(source), ("torch",), torch_attributes()))
