"""Finds what a source does with NVIDIA's bindings, and what of it a release does not offer.

A small type inference over the syntax tree: it starts from the module (a name ``trt``, or ``trt_rtx``) and from
annotations ``x: trt.ICudaEngine``, and follows assignments, calls, attributes and loops through the types that the
bindings' own docstrings state. A value of the bindings that it cannot follow is itself a finding.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

Api = dict[str, dict[str, Any]]
Known = dict[str, Any] | None
"""What an expression is: an entry of an `Api`, a {"kind": "module" | "instance" | "list"}, or None if not theirs."""

_PLAIN = {
    *("None", "bool", "int", "float", "str", "bytes", "list[str]", "List[str]", "?"),
    *("Dims", "capsule", "typing_extensions.CapsuleType", "typing.SupportsInt"),
}


def findings(source: str, api: Api, module: str = "trt") -> tuple[list[str], set[str]]:
    """What `source` wants of the bindings and `api` lacks, one line each; and every name that was looked up."""
    tree = ast.parse(source)
    checker = _Checker(api, module)
    for node in ast.walk(tree):  # what functions and attributes hold, wherever they are defined
        if isinstance(node, ast.FunctionDef) and node.returns is not None:
            checker.results[node.name] = checker.annotated(node.returns)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            checker.attributes[node.target.id] = checker.annotated(node.annotation)
    checker.names = {module: {"kind": "module"}}
    checker.visit(tree)
    return checker.found, checker.used


@dataclass
class _Checker(ast.NodeVisitor):
    api: Api
    module: str
    found: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    names: dict[str, Known] = field(default_factory=dict)
    attributes: dict[str, Known] = field(default_factory=dict)
    results: dict[str, Known] = field(default_factory=dict)

    def say(self, node: ast.AST, text: str) -> None:
        line = f"line {getattr(node, 'lineno', 0)}: {text}"
        if line not in self.found:
            self.found.append(line)

    def instance(self, name: str, node: ast.AST) -> Known:
        """A value of the type that a docstring calls `name`."""
        name = name.removesuffix(" | None")
        for prefix in ("List[", "list["):
            if name.startswith(prefix) and name not in _PLAIN:
                return {"kind": "list", "of": self.instance(name[len(prefix) : -1], node)}
        if name in _PLAIN:
            return None
        entry: Known = {"members": self.api}
        for part in name.split("."):
            entry = (entry or {}).get("members", {}).get(part)
        if entry is None:
            self.say(node, f"cannot follow a value of type {name}")
            return None
        return {"kind": "instance", "class": entry}

    def annotated(self, annotation: ast.expr) -> Known:
        """What an annotation like ``trt.ICudaEngine`` or ``trt.Runtime | None`` says."""
        for node in ast.walk(annotation):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.module:
                entry = self.member({"kind": "module"}, node.attr, node)
                return {"kind": "instance", "class": entry} if entry else None
        return None

    def member(self, of: dict[str, Any], name: str, node: ast.AST) -> Known:
        """The entry of ``of.name``; a finding if there is none."""
        if of["kind"] == "module":
            members, where = self.api, self.module
        else:
            entry = of["class"] if of["kind"] == "instance" else of
            members, where = entry.get("members", {}), entry.get("name", "?")
            if name in ("name", "value", "__members__") and entry.get("enumeration"):
                return None
        if name == "__version__":
            return None
        self.used.add(f"{where}.{name}")
        if name not in members:
            self.say(node, f"{where}.{name} does not exist")
            return None
        return dict(members[name])

    def resolve(self, node: ast.expr | None) -> Known:
        """What the expression is, if the bindings know it; checks every use of the bindings within."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.BoolOp):
            return next((known for known in map(self.resolve, node.values) if known), None)
        if isinstance(node, ast.IfExp):
            self.resolve(node.test)
            return self.resolve(node.body) or self.resolve(node.orelse)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            for generator in node.generators:
                self.assign(generator.target, self.iterated(self.resolve(generator.iter)))
                for test in generator.ifs:
                    self.resolve(test)
            if isinstance(node, ast.DictComp):
                self.resolve(node.key)
                self.resolve(node.value)
                return None
            element = self.resolve(node.elt)
            return {"kind": "list", "of": element} if element else None
        if isinstance(node, ast.Subscript):
            self.resolve(node.slice)
            return self.iterated(self.resolve(node.value))
        for child in ast.iter_child_nodes(node) if node is not None else ():
            if isinstance(child, ast.expr):
                self.resolve(child)
        return None

    def iterated(self, known: Known) -> Known:
        return known["of"] if known and known["kind"] == "list" else None

    def attribute(self, node: ast.Attribute) -> Known:
        base = self.resolve(node.value)
        if base is None:
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            return self.attributes.get(node.attr) if own else None
        if base["kind"] not in ("module", "instance", "class"):
            return None
        entry = self.member(base, node.attr, node)
        if entry is None:
            return None
        if entry["kind"] in ("property", "value"):
            return self.instance(entry["type"], node)
        return entry

    def call(self, node: ast.Call) -> Known:
        called = self.resolve(node.func)
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            self.resolve(argument)
        if called is None:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            return self.results.get(name)
        if called["kind"] == "class":
            self.arguments(node, called["members"]["__init__"], called["name"])
            return {"kind": "instance", "class": called}
        if called["kind"] == "function":
            self.arguments(node, called, ast.unparse(node.func))
            return self.instance(called["signatures"][0]["returns"], node) if called["signatures"] else None
        return None

    def arguments(self, node: ast.Call, function: dict[str, Any], name: str) -> None:
        """A finding if no overload takes this number of positional arguments and these keywords."""
        count, keywords = len(node.args), {keyword.arg for keyword in node.keywords}
        unbound = ast.unparse(node.func).endswith(".__init__")  # ``trt.ILogger.__init__(self)`` passes self itself
        for signature in function["signatures"]:
            parameters = signature["parameters"]
            taken = {p["name"] for p in parameters[: count - unbound]} | keywords
            names = {p["name"] for p in parameters}
            required = {p["name"] for p in parameters if not p["default"]}
            overlap = {p["name"] for p in parameters[: count - unbound]} & keywords
            if count - unbound <= len(parameters) and taken <= names and required <= taken and not overlap:
                return
        if function["signatures"]:
            self.say(
                node, f"{name} does not take {count} positional arguments and keywords {sorted(map(str, keywords))}"
            )

    def assign(self, target: ast.expr, known: Known) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = known
        elif isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self.assign(element, None)
        elif isinstance(target, ast.Attribute):
            self.resolve(target)  # setting a property that is not there is a finding, too

    # ---- statements

    def visit_Assign(self, node: ast.Assign) -> None:
        known = self.resolve(node.value)
        imported = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "import_tensorrt"
        pairs = isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)
        for target in node.targets:
            if pairs and isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for name, value in zip(target.elts, node.value.elts, strict=True):
                    self.assign(name, self.resolve(value))
            elif not (imported and isinstance(target, ast.Name) and target.id == self.module):
                self.assign(target, known)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.resolve(node.value)
        self.assign(node.target, self.annotated(node.annotation))

    def visit_For(self, node: ast.For) -> None:
        self.assign(node.target, self.iterated(self.resolve(node.iter)))
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.names)
        for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
            if argument.arg != self.module:
                self.names[argument.arg] = self.annotated(argument.annotation) if argument.annotation else None
        for statement in node.body:
            self.visit(statement)
        self.names = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """What a class of ours overrides in one of the bindings' must exist there, with as many parameters."""
        bases = [known for known in map(self.resolve, node.bases) if known]
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                for base in bases:
                    entry = self.member(base, method.name, method)
                    counts = {len(s["parameters"]) for s in (entry or {}).get("signatures", [])}
                    if counts and len(method.args.args) - 1 not in counts:
                        self.say(method, f"{base['name']}.{method.name} has other parameters")
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.resolve(child)
            elif not isinstance(child, ast.expr_context):
                self.visit(child)
