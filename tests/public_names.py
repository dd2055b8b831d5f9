"""The names that users reach, and their definitions. Sources are parsed; nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
Function = ast.FunctionDef | ast.AsyncFunctionDef

# Modules whose ``__all__`` (without one: public definitions) users import.
MODULES = (
    "hvd_backup",
    "hvd_backup.torch",
    "hvd_backup.torch.ddp_hook",
    "hvd_backup.tensorflow",
    "hvd_backup.tensorflow.keras",
    "hvd_backup.tensorflow.keras.callbacks",
    "hvd_backup.keras",
    "hvd_backup.keras.callbacks",
)
# Modules that forward to Horovod: they have no names of their own.
FORWARDING = tuple(f"hvd_backup.{name}" for name in ("mxnet", "ray", "spark", "torch.elastic"))
# Classes that users get from public functions and attributes.
REACHED = (
    ("hvd_backup.rounds.reports", "History"),
    ("hvd_backup.torch.compression", "Compresses"),
    ("hvd_backup.torch.compression", "NoneCompressor"),
    ("hvd_backup.torch.compression", "FP16Compressor"),
    ("hvd_backup.torch.compression", "BF16Compressor"),
    ("hvd_backup.torch.optimizer", "DistributedOptimizerType"),
    ("hvd_backup.tensorflow.compression", "Compressor"),
    ("hvd_backup.tensorflow.compression", "NoneCompressor"),
    ("hvd_backup.tensorflow.compression", "FP16Compressor"),
    ("hvd_backup.tensorflow.compression", "BF16Compressor"),
    ("hvd_backup.tensorflow.tape", "_Tape"),
    ("hvd_backup.tensorflow.keras.optimizer", "DistributedOptimizerType"),
)


class Public(NamedTuple):
    """A public name and its definition."""

    name: str  # as users write it
    module: str
    node: ast.AST
    docs: str | None


class Sources:
    """Definitions below a folder, followed through imports."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trees: dict[str, ast.Module] = {}

    def path(self, module: str) -> Path | None:
        base = self._root.joinpath(*module.split("."))
        files = (base.with_suffix(".py"), base / "__init__.py", base.with_suffix(".pyi"))
        return next((file for file in files if file.exists()), None)

    def tree(self, module: str) -> ast.Module:
        if module not in self._trees:
            path = self.path(module)
            assert path is not None, f"there is no module {module}"
            self._trees[module] = ast.parse(path.read_text())
        return self._trees[module]

    def body(self, module: str) -> Iterator[tuple[ast.stmt, ast.stmt | None]]:
        """The statements with their successors, those below an `if` or `try`, too."""
        waiting: list[list[ast.stmt]] = [self.tree(module).body]
        while waiting:
            block = waiting.pop(0)
            for i, node in enumerate(block):
                yield node, (block[i + 1] if i + 1 < len(block) else None)
                if isinstance(node, ast.If | ast.Try):
                    waiting += [node.body, node.orelse]

    def names(self, module: str) -> list[str]:
        """The public names: ``__all__``, or else what is defined there."""
        for node, _ in self.body(module):
            if isinstance(node, ast.Assign) and targets(node) == ["__all__"]:
                return self._listed(module, node.value)
        own = [node for node, _ in self.body(module) if isinstance(node, Function | ast.ClassDef)]
        return [node.name for node in own if not node.name.startswith("_")]

    def _listed(self, module: str, value: ast.expr) -> list[str]:
        assert isinstance(value, ast.List | ast.Tuple), f"{module}.__all__ is not a list"
        names: list[str] = []
        for one in value.elts:
            if isinstance(one, ast.Starred):
                assert isinstance(one.value, ast.Name)
                names += self.names(self._imported(module, one.value.id)[0])
            else:
                assert isinstance(one, ast.Constant)
                names.append(str(one.value))
        return names

    def _imported(self, module: str, name: str) -> tuple[str, str]:
        """Where `name` is imported from, and under which name it is there."""
        stars = []
        for node, _ in self.body(module):
            if not isinstance(node, ast.ImportFrom) or not self.path(node.module or ""):
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module or "", alias.name
                if alias.name == "*":
                    stars.append(node.module or "")
        for star in stars:
            if name in self.names(star):
                return star, name
        raise LookupError(f"{module}.{name} has no definition")

    def find(self, module: str, name: str, shown: str = "") -> Public:
        """The definition of a name, in the module or where that imports it from."""
        shown = shown or f"{module}.{name}"
        if self.path(f"{module}.{name}"):
            tree = self.tree(f"{module}.{name}")
            return Public(shown, f"{module}.{name}", tree, ast.get_docstring(tree))
        for node, after in self.body(module):
            if isinstance(node, Function | ast.ClassDef) and node.name == name:
                if not has_decorator(node, "overload"):
                    return Public(shown, module, node, ast.get_docstring(node))
            elif isinstance(node, ast.Assign | ast.AnnAssign) and name in targets(node):
                return Public(shown, module, node, text_of(after))
        return self.find(*self._imported(module, name), shown)

    def public(self) -> list[Public]:
        """Each definition once, under the first name that users have for it."""
        found: dict[int, Public] = {}
        wanted = [(module, name) for module in MODULES for name in self.names(module)]
        for one in (self.find(*where) for where in [*wanted, *REACHED]):
            found.setdefault(id(one.node), one)
        for module in (*MODULES, *FORWARDING):
            tree = self.tree(module)
            found.setdefault(id(tree), Public(module, module, tree, ast.get_docstring(tree)))
        return list(found.values())


def has_decorator(node: Function | ast.ClassDef, *names: str) -> bool:
    return any(ast.unparse(one).rpartition(".")[2] in names for one in node.decorator_list)


def targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    left = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [one for t in left for one in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [one.id for one in flat if isinstance(one, ast.Name)]


def text_of(node: ast.stmt | None) -> str | None:
    """The docstring of the assignment before."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return node.value.value if isinstance(node.value.value, str) else None
    return None
