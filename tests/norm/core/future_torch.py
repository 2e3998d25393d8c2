"""A torch of the future that lacks a name: the files of syncbn that use private ones ask it for another one instead.

`python -m tests.norm.core.future_torch` takes away one name after the other, or those it is given, and tries what the
package does: the right numbers, or a refusal that names torch and the name.
"""

import ast
import importlib.machinery
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path

from syncbn.norm.core import private
from syncbn.norm.core.lookup import PrivateAttribute

CORE = Path(private.__file__).parent
FILES = ("lookup", "probes", "private", "compat")

# Those of torch before 2.13, which nothing newer is asked for.
OF_OLDER = {"_start", "_terminate_process_handler"}


def is_private(name: str) -> bool:
    """Whether a name, or the last part of a dotted one, is torch's own, or documented at a private place."""
    leaf = name.rpartition(".")[2]
    return (leaf.startswith("_") and not leaf.startswith("__")) or any(
        part in name for part in ("._", ".reductions.", ".experimental.")
    )


def names() -> list[str]:
    """Names of torch that the files use: attributes, and dotted names in strings, by their last part."""
    found = set()
    for file in FILES:
        tree = ast.parse((CORE / f"{file}.py").read_text())
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        own |= {
            node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                found.update({node.attr} - own)
            elif isinstance(node, ast.Constant) and str(node.value).startswith("torch.") and " " not in str(node.value):
                found.update({node.value.rpartition(".")[2]} if is_private(node.value) else ())
    return sorted(found - OF_OLDER - {""})


class Rename(ast.NodeTransformer):
    """Asks for `<name>_gone` wherever a file asks torch for a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr == self.name and not (isinstance(node.value, ast.Name) and node.value.id in FILES):
            node.attr += "_gone"
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        is_asked = isinstance(node.value, str) and node.value.rpartition(".")[2] == self.name
        return ast.copy_location(ast.Constant(f"{node.value}_gone"), node) if is_asked else node


def renamed(file: Path, name: str) -> types.CodeType:
    """Compile a file that asks for another name."""
    tree = Rename(name).visit(ast.parse(file.read_text()))
    return compile(ast.fix_missing_locations(tree), file, "exec")


def execute(name: str) -> None:
    """Execute the files beside the real ones."""
    before = {file: sys.modules[f"syncbn.norm.core.{file}"] for file in FILES}
    package = sys.modules["syncbn.norm.core"]
    try:
        for file in FILES:
            module = types.ModuleType(f"syncbn.norm.core.{file}")
            exec(renamed(CORE / f"{file}.py", name), module.__dict__)
            sys.modules[module.__name__] = module
            setattr(package, file, module)
    finally:
        for file, module in before.items():
            sys.modules[module.__name__] = module
            setattr(package, file, module)


def without(attribute: PrivateAttribute) -> PrivateAttribute:
    """The attribute of a torch that calls it otherwise."""
    return type(attribute)(f"{attribute.name}_gone", attribute.feature, attribute.instead, attribute.probe)


class Finder(MetaPathFinder):
    """Finds the files as `renamed` compiles them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in {f"syncbn.norm.core.{file}" for file in FILES}:
            return None
        name = self.name

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> types.CodeType:
                return renamed(Path(self.path), name)

        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = Loader(fullname, spec.origin)
        return spec


def try_all(name: str) -> list[str]:
    """What goes wrong without a name, other than by a refusal that names it."""
    for module in [module for module in sys.modules if module.split(".")[0] == "syncbn"]:
        del sys.modules[module]
    sys.meta_path.insert(0, Finder(name))
    warnings.simplefilter("ignore")
    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    import syncbn

    def network(norm: str | None = None) -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
        network = nn.Sequential(*layers)
        return network if norm is None else syncbn.convert(network, norm)

    def gradients(network: nn.Module, wrapped: Callable[..., torch.Tensor] | None = None) -> list[torch.Tensor]:
        y = wrapped(network, x) if wrapped else network(x)
        return [y, *torch.autograd.grad(y.square().sum(), [*network.parameters()])]

    def repeated(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(network, x, use_reentrant=False)

    def compared(network: nn.Module, wrapped: Callable[..., torch.Tensor] | None = None) -> None:
        for actual, expected in zip(gradients(network, wrapped), right, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)

    def fused_relu() -> None:
        options = {"fuse_activation": True, "memory": "recompute", "overlap": True}
        compared(syncbn.convert(network(), "sync", example_input=x, **options))

    def frozen() -> None:
        model = network()
        syncbn.freeze(model)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.train()(x)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def folded() -> None:
        model = network("sync").eval()
        expected = model(x)
        torch.testing.assert_close(syncbn.fuse(model, example_input=x)(x), expected, rtol=1e-3, atol=1e-4)

    def traced() -> None:
        from torch.fx.experimental.proxy_tensor import make_fx

        model = network("sync").eval()
        torch.testing.assert_close(make_fx(model)(x)(x), model(x), rtol=1e-3, atol=1e-4)

    x = torch.randn(4, 3, 10, 10)
    right = gradients(network())
    trials: dict[str, Callable[[], object]] = {
        "sync": lambda: compared(network("sync")),
        "checkpointed": lambda: compared(network("sync"), repeated),
        "fused with ReLU": fused_relu,
        "freeze": frozen,
        "fuse": folded,
        "make_fx": traced,
        "recalibrate": lambda: syncbn.recalibrate(network(), [x, x]),
        "inspect": lambda: syncbn.inspect(network(), [x, x]),
        "revert": lambda: compared(syncbn.revert(network("sync"))),
        "vmap": lambda: torch.func.vmap(network("sync").eval())(x[None]),
        **{
            norm: lambda norm=norm: gradients(network(norm))
            for norm in ("batch_renorm", "ghost", "cross_iteration", "moving_average", "group", "spectral", "weight")
        },
    }
    wrong, refused = [], []
    for trial, function in trials.items():
        try:
            function()
        except Exception as error:
            is_refusal = f"{name}_gone" in str(error) and f"which torch {torch.__version__} " in str(error)
            (refused if is_refusal else wrong).append(f"{trial}: {type(error).__name__}: {str(error)[:300]}")
    print(f"{name}: {len(trials) - len(wrong) - len(refused)} right, {len(refused)} refused, {len(wrong)} wrong")
    print(*(f"    {line}" for line in (wrong or refused[:1])), sep="\n")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(1 if try_all(sys.argv[1]) else 0)
    codes = [subprocess.call([sys.executable, "-m", __spec__.name, name]) for name in sys.argv[1:] or names()]
    sys.exit(max(codes))
