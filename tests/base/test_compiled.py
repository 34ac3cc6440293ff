"""What is compiled, and how often."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import moesim

ROOT = Path(moesim.__file__).parent


def functions() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any("compiled" in ast.unparse(d) for d in node.decorator_list):
                yield path, node


def literal(argument: ast.expr) -> bool:
    """Return whether an argument is a whole number, with or without a sign."""
    bare = argument.operand if isinstance(argument, ast.UnaryOp) else argument
    return isinstance(bare, ast.Constant) and isinstance(bare.value, int)


def test_no_compiled_function_is_given_a_literal() -> None:
    """Numba compiles a function anew for every whole number that is written where it is called."""
    names = {function.name for _, function in functions()}
    assert len(names) > 50
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)}"
        for path, function in functions()
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in names
        and any(map(literal, call.args))
    ]
    assert found == []
