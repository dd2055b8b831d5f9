"""The public names of Horovod's modules, or of ours that stand in for them, with their signatures.

    python docs/horovod_api.py FOLDER/horovod >tests/data/horovod_0_28_1.json

records Horovod's; FOLDER is the unpacked sdist. Sources are parsed, not imported: neither Horovod
nor TensorFlow has to be there.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

MODULES = {
    "torch": "torch/__init__.py",
    "tensorflow": "tensorflow/__init__.py",
    "tensorflow.keras": "tensorflow/keras/__init__.py",
    "tensorflow.keras.callbacks": "tensorflow/keras/callbacks.py",
    "keras": "keras/__init__.py",
    "keras.callbacks": "keras/callbacks.py",
}

# Arguments (name, whether there is a default), or what else the name stands for.
Signature = list[list[str | bool]] | str


def signature(node: ast.FunctionDef) -> Signature:
    """The arguments of a function; those with stars have their stars, and `*` what comes after."""
    arguments = node.args
    plain = [*arguments.posonlyargs, *arguments.args]
    without = len(plain) - len(arguments.defaults)
    listed: list[list[str | bool]] = [[a.arg, i >= without] for i, a in enumerate(plain)]
    if arguments.vararg:
        listed.append(["*" + arguments.vararg.arg, True])
    elif arguments.kwonlyargs:
        listed.append(["*", True])
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    listed += [[a.arg, default is not None] for a, default in pairs]
    if arguments.kwarg:
        listed.append(["**" + arguments.kwarg.arg, True])
    return [one for one in listed if one[0] != "self"]


class Sources:
    """Definitions of a package's modules, followed through their imports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = root.name
        basics = root / "common/basics.py"
        self.basics = self._methods(basics, "HorovodBasics") if basics.exists() else {}

    def _methods(self, path: Path, name: str) -> dict[str, ast.FunctionDef]:
        body = next(n for n in self.body(path) if isinstance(n, ast.ClassDef) and n.name == name)
        return {n.name: n for n in body.body if isinstance(n, ast.FunctionDef)}

    def body(self, path: Path) -> list[ast.stmt]:
        """The module's statements, also those below an `if` or `try`."""
        found: list[ast.stmt] = []
        waiting = list(ast.parse(path.read_text()).body)
        while waiting:
            node = waiting.pop(0)
            found.append(node)
            if isinstance(node, ast.If | ast.Try):
                waiting = [*node.body, *node.orelse, *waiting]
        return found

    def path(self, module: str) -> Path | None:
        file = self.root.joinpath(*module.split(".")[1:])
        for path in (file.with_suffix(".py"), file / "__init__.py"):
            if module.split(".", 1)[0] == self.package and path.exists():
                return path
        return None

    def record(self) -> dict[str, dict[str, Signature]]:
        """The public names of all modules; of a module that is not there, none."""
        files = {module: self.root / file for module, file in MODULES.items()}
        return {m: self.names(file) if file.exists() else {} for m, file in files.items()}

    def names(self, path: Path) -> dict[str, Signature]:
        """Public names of a module, with a signature if they have one."""
        found: dict[str, Signature] = {}
        for node in self.body(path):
            if isinstance(node, ast.FunctionDef):
                found[node.name] = signature(node)
            elif isinstance(node, ast.ClassDef):
                found[node.name] = self.constructor(node)
            elif isinstance(node, ast.ImportFrom) and self.is_interface(node.module or ""):
                module = node.module or ""
                for alias in node.names:
                    source = self.path(module)
                    if alias.name == "*" and source is not None:
                        found.update(self.names(source))
                        continue
                    found[alias.asname or alias.name] = self.follow(module, alias.name)
        return {n: s for n, s in sorted(found.items()) if not n.startswith("_")}

    def is_interface(self, module: str) -> bool:
        inside = module.split(".", 1)[0] == self.package
        return inside and not module.startswith("horovod.common.util")

    def constructor(self, node: ast.ClassDef) -> Signature:
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        return signature(methods["__init__"]) if "__init__" in methods else "class"

    def follow(self, module: str, name: str) -> Signature:
        """The signature of a name that another module defines; what it is, if it has none."""
        path = self.path(module)
        if path is None or self.path(f"{module}.{name}"):
            return "module"
        if name in ("init", "shutdown") and name in self.basics:
            return signature(self.basics[name])  # they hand their arguments on
        for node in self.body(path):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return signature(node)
            if isinstance(node, ast.ClassDef) and node.name == name:
                return self.constructor(node)
            if isinstance(node, ast.ImportFrom) and self.is_interface(node.module or ""):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self.follow(node.module or "", alias.name)
        return signature(self.basics[name]) if name in self.basics else "value"


def main() -> None:
    json.dump(Sources(Path(sys.argv[1])).record(), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
