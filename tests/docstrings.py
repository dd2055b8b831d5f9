"""Counts what the docstrings of public names say. Sources are parsed; nothing is imported.

    python tests/docstrings.py

prints the shares, and every name that lacks something.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from public_names import ROOT, Function, Public, Sources, has_decorator, targets, text_of

RECORD = ROOT / "tests/data/horovod_0_28_1.json"

# Classes whose objects the package makes.
_MADE_HERE = {"Attempt", "DdpHook", "History", "_Tape"}
# Methods that torch or Keras calls, and documents: users do not.
_OF_FRAMEWORKS = re.compile(r"on_|(set_model|forward)$")

# Arguments that are tensors or arrays, by name or by annotation.
_TENSORS = {
    *("tensor", "tensors", "array", "arrays", "x", "input", "inputs", "value", "values", "splits"),
    *("gradients", "grads", "grads_and_vars", "output_gradients", "params", "variables"),
    *("source", "sources", "target", "bucket"),
}
_TENSOR_TYPE = re.compile(r"\b(Array|Tensor|NDArray|GradBucket)\b")
# Tensors that are only told apart: their values are not read.
_NOT_READ = {"named_parameters", "groups"}
_SHAPE = re.compile(r"shape|scalar|\brows?\b|\bax[ei]s\b|\[[^\]]*\]|\(N, ")
_DTYPE = re.compile(r"dtype|float(16|32|64)|int(32|64)|\bbool\b|integer|complex|string")
_UNITS = {
    "grace": re.compile("[Ss]econd"),
    "timeout": re.compile("[Ss]econd"),
    "window": re.compile("round|result"),
    "backup_workers": re.compile("rank"),
    "_s": re.compile("[Ss]econd"),  # attributes whose names end so
}

_SECTION = re.compile(r"(Args|Arguments|Attributes|Examples?|Notes?|Raises|Returns|Yields):$")
_ENTRY = re.compile(r" {4}(\*{0,2}[\w.]+)(?: \([^)]*\))?:(?: (.*))?$")
KINDS = ("docstring", "argument", "result", "error", "tensor", "unit", "source")


class Docs:
    """A docstring in Google's style, taken apart."""

    def __init__(self, text: str | None) -> None:
        self.text = inspect.cleandoc(text or "")
        self.sections: dict[str, list[str]] = {}
        section = ""
        for line in self.text.splitlines():
            if match := _SECTION.match(line):
                section = match[1]
            elif line and not line.startswith(" "):
                section = ""
            self.sections.setdefault(section, []).append(line)

    def has(self, *sections: str) -> bool:
        return any(name in self.sections for name in sections)

    def body(self, section: str) -> str:
        return "\n".join(self.sections.get(section, [])[1:])

    def entries(self, section: str) -> dict[str, str]:
        """What a section says of each name."""
        found: dict[str, str] = {}
        name = ""
        for line in self.sections.get(section, [])[1:]:
            if match := _ENTRY.match(line):
                name = match[1]
                found[name] = match[2] or ""
            elif name:
                found[name] += " " + line.strip()
        return {name: text for name, text in found.items() if text.strip()}


class Fact(NamedTuple):
    """Something that a docstring has to say, and whether it does."""

    kind: str
    name: str
    said: bool


def facts(sources: Sources, one: Public) -> Iterator[Fact]:
    """All that the docstring of a public name has to say."""
    yield Fact("docstring", one.name, bool(one.docs))
    if isinstance(one.node, Function):
        yield from _of_function(one.name, one.node, Docs(one.docs))
    elif isinstance(one.node, ast.ClassDef):
        yield from _of_class(sources, one, one.node)


def _of_class(sources: Sources, one: Public, node: ast.ClassDef) -> Iterator[Fact]:
    docs = Docs(one.docs)
    for part, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(part, ast.Assign | ast.AnnAssign):
            yield from _of_attribute(one.name, part, after, docs)
        elif isinstance(part, Function) and part.name == "__init__":
            if node.name not in _MADE_HERE:
                own = ast.get_docstring(part) or ""
                whole = Docs(f"{docs.text}\n\n{own}")
                yield from _of_function(one.name, part, whole, method=True)
        elif isinstance(part, Function) and _is_for_users(sources, one, node, part):
            yield from _of_method(f"{one.name}.{part.name}", part)


def _of_attribute(
    owner: str, part: ast.Assign | ast.AnnAssign, after: ast.stmt | None, docs: Docs
) -> Iterator[Fact]:
    kind = ast.unparse(part.annotation) if isinstance(part, ast.AnnAssign) else ""
    for name in (n for n in targets(part) if not n.startswith("_")):
        text = text_of(after) or docs.entries("Attributes").get(name, "")
        yield Fact("docstring", f"{owner}.{name}", bool(text))
        yield from _says_unit(f"{owner}.{name}", text)
        if _TENSOR_TYPE.search(kind):
            yield from _says_tensor(f"{owner}.{name}", text)


def _of_method(name: str, part: Function) -> Iterator[Fact]:
    text = ast.get_docstring(part) or ""
    yield Fact("docstring", name, bool(text))
    if has_decorator(part, "property", "cached_property"):  # read as an attribute
        yield from _says_unit(name, text)
        return
    static = has_decorator(part, "staticmethod")
    yield from _of_function(name, part, Docs(text), method=not static)


def _is_for_users(sources: Sources, one: Public, node: ast.ClassDef, part: Function) -> bool:
    if part.name.startswith("_") or has_decorator(part, "setter", "overload"):
        return False
    if node.bases and _OF_FRAMEWORKS.match(part.name):
        return False
    # IDEs show the docstring of the method that it stands for.
    return bool(ast.get_docstring(part)) or not any(
        _documents(sources, one.module, base, part.name) for base in node.bases
    )


def _documents(sources: Sources, module: str, base: ast.expr, method: str) -> bool:
    if not isinstance(base, ast.Name):
        return False
    try:
        parent = sources.find(module, base.id)
    except LookupError:  # a class of another package
        return False
    assert isinstance(parent.node, ast.ClassDef)
    own = [p for p in parent.node.body if isinstance(p, Function) and p.name == method]
    if own and ast.get_docstring(own[0]):
        return True
    return any(_documents(sources, parent.module, one, method) for one in parent.node.bases)


def _of_function(name: str, node: Function, docs: Docs, *, method: bool = False) -> Iterator[Fact]:
    said = docs.entries("Args")
    tensors = False
    for argument, annotation in _arguments(node, method=method):
        bare = argument.lstrip("*")
        yield Fact("argument", f"{name}({argument})", argument in said)
        is_tensor = bare in _TENSORS or bool(_TENSOR_TYPE.search(annotation))
        if is_tensor and bare not in _NOT_READ:
            tensors = True
            yield from _says_tensor(f"{name}({argument})", said.get(argument, ""))
        if bare in _UNITS:
            right = _UNITS[bare].search(said.get(argument, ""))
            yield Fact("unit", f"{name}({argument})", bool(right))
    if node.name != "__init__" and _returns(node):
        yield Fact("result", name, docs.has("Returns", "Yields"))
        kind = ast.unparse(node.returns) if node.returns else ""
        if tensors or _TENSOR_TYPE.search(kind):
            yield from _says_tensor(f"{name}()", docs.body("Returns"))
    for error in sorted(set(_raised(node))):
        yield Fact("error", f"{name}: {error}", error in docs.entries("Raises"))


def _says_tensor(name: str, text: str) -> Iterator[Fact]:
    yield Fact("tensor", f"{name}: shape", bool(_SHAPE.search(text)))
    yield Fact("tensor", f"{name}: dtype", bool(_DTYPE.search(text)))


def _says_unit(attribute: str, text: str) -> Iterator[Fact]:
    if attribute.endswith("_s"):
        yield Fact("unit", attribute, bool(_UNITS["_s"].search(text)))


def _arguments(node: Function, *, method: bool) -> Iterator[tuple[str, str]]:
    """Names, with their stars, and annotations."""
    given = node.args
    plain = [*given.posonlyargs, *given.args][1 if method else 0 :]
    starred = [(f"*{given.vararg.arg}", given.vararg)] if given.vararg else []
    starred += [(one.arg, one) for one in given.kwonlyargs]
    starred += [(f"**{given.kwarg.arg}", given.kwarg)] if given.kwarg else []
    for name, one in [*((one.arg, one) for one in plain), *starred]:
        yield name, ast.unparse(one.annotation) if one.annotation else ""


def _returns(node: Function) -> bool:
    if node.returns is not None and ast.unparse(node.returns) not in ("Any", "None"):
        return True
    returned = [n.value for n in _inside(node) if isinstance(n, ast.Return)]
    return any(
        value is not None and not (isinstance(value, ast.Constant) and value.value is None)
        for value in returned
    )


def _raised(node: Function) -> Iterator[str]:
    """The classes of the errors that the function itself raises; none if it is a declaration."""
    does = [part for part in node.body if text_of(part) is None]
    if len(does) == 1 and ast.unparse(does[0]) == "raise NotImplementedError":
        return
    for part in _inside(node):
        if isinstance(part, ast.Raise) and part.exc is not None:
            what = part.exc.func if isinstance(part.exc, ast.Call) else part.exc
            name = ast.unparse(what).rpartition(".")[2]
            if name[:1].isupper():  # else an error that was caught, and is raised again
                yield name


def _inside(node: Function) -> Iterator[ast.AST]:
    """What is in the function's body, but not in functions that it defines."""
    waiting: list[ast.AST] = [*node.body]
    while waiting:
        part = waiting.pop()
        yield part
        if not isinstance(part, Function | ast.ClassDef | ast.Lambda):
            waiting += ast.iter_child_nodes(part)


def horovods(sources: Sources) -> Iterator[Fact]:
    """Whether each name that Horovod has too says so."""
    for part, names in json.loads(RECORD.read_text()).items():
        module = f"hvd_backup.{part}"
        for name in sorted(set(names) & set(sources.names(module))):
            one = sources.find(module, name)
            if not isinstance(one.node, ast.Module):
                yield Fact("source", one.name, "horovod" in (one.docs or "").lower())


def count(sources: Sources) -> list[Fact]:
    """All that has to be said of all public names."""
    return [fact for one in sources.public() for fact in facts(sources, one)]


def report(found: list[Fact]) -> str:
    """The shares by kind, and what is missing."""
    lines = []
    for kind in KINDS:
        alike = [fact for fact in found if fact.kind == kind]
        said = sum(fact.said for fact in alike)
        share = 100 * said / len(alike) if alike else 100.0
        lines.append(f"{kind}: {said} of {len(alike)} ({share:.1f} %)")
        lines += [f"  missing: {fact.name}" for fact in alike if not fact.said]
    return "\n".join(lines)


if __name__ == "__main__":
    everything = Sources(ROOT)
    print(report([*count(everything), *horovods(everything)]))
