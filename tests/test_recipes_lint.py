"""Recipes use only operations that give the same bits on every machine.

A sample is published by its SHA-256 and regenerated where it is used, so one last bit that differs
makes it unusable there. Discipline is not enough: this reads the syntax tree of every
``datapackages/*/simulate.py``. It lets through what IEEE 754 or integer arithmetic fixes; the rest
(``exp``, ``sin``, powers, matrix products, sums, random numbers) is in `scibench_data.exact`.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parent.parent / "datapackages").glob("*/simulate.py"))

# Of NumPy: making and moving arrays, comparing, rounding, and correctly rounded arithmetic.
NUMPY = """
    abs absolute add all allclose any arange argmax argmin array array_equal array_split asarray
    ascontiguousarray astype atleast_1d atleast_2d bincount bool_ broadcast_arrays broadcast_to
    ceil clip column_stack concatenate copysign count_nonzero delete diag diff divide divmod dtype
    empty empty_like equal expand_dims eye flatnonzero flip float32 float64 floor floor_divide
    frexp frombuffer full full_like greater hstack iinfo indices inf int16 int32 int64 int8 integer
    intp isfinite isin isnan ldexp less logical_and logical_not logical_or max maximum meshgrid
    min minimum mod moveaxis multiply nan ndarray ndim newaxis nonzero number ones ones_like pad
    ravel remainder repeat reshape result_type rint roll round searchsorted shape sign signbit
    size split sqrt square squeeze stack str_ subtract swapaxes take take_along_axis tile transpose
    tril triu trunc uint16 uint32 uint64 uint8 unique unravel_index vstack where zeros zeros_like
"""
NUMPY_WITH_ARGUMENT = {  # safe only when they say so
    "sum": ("dtype", "np.int64"),
    "cumsum": ("dtype", "np.int64"),
    "prod": ("dtype", "np.int64"),
    "sort": ("kind", "'stable'"),
    "argsort": ("kind", "'stable'"),
}
MATH = {"ceil", "comb", "copysign", "floor", "frexp", "gcd", "inf", "isfinite", "isqrt", "ldexp"}
MATH |= {"factorial", "lcm", "pi", "prod", "sqrt", "tau"}
METHODS = {
    "dot",
    "mean",
    "std",
    "var",
    "trace",
    "ptp",
    "accumulate",
    "reduce",
    "reduceat",
    "matmul",
}
MODULES = {"random", "cmath", "statistics", "scipy", "secrets", "torch", "decimal", "numexpr"}
BUILTINS = {"sum", "pow", "complex", "hash"}  # sum() of floats compensates since Python 3.12


def problems(source: str) -> Iterator[str]:
    """Name each operation in a recipe whose last bit no standard fixes."""
    checks: tuple[Callable[[ast.AST], str | None], ...] = (_import, _operator, _attribute, _call)
    for node in ast.walk(ast.parse(source)):
        for check in checks:
            found = check(node)
            if found is not None:
                yield f"line {getattr(node, 'lineno', 0)}: {found}"


def _import(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import):
        modules = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        modules = {str(node.module)}
        if node.module in {"numpy", "math"}:
            return f"import {node.module} whole, so that its use is seen"
    else:
        return None
    wrong = {name for name in modules if name.split(".")[0] in MODULES or name == "numpy.random"}
    return f"imports {', '.join(sorted(wrong))}" if wrong else None


def _operator(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, complex):
        return "complex numbers: their product may be fused"
    if not isinstance(node, ast.BinOp | ast.AugAssign):
        return None
    if isinstance(node.op, ast.MatMult):
        return "@: use exact.matmul"
    if not isinstance(node.op, ast.Pow):
        return None
    base, exponent = (
        (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
    )
    square = isinstance(exponent, ast.Constant) and exponent.value == 2
    constants = all(isinstance(n, ast.Constant) and type(n.value) is int for n in (base, exponent))
    return None if square or constants else "**: only squares and integer constants"


def _attribute(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Attribute):
        return None
    owner = node.value.id if isinstance(node.value, ast.Name) else ""
    if owner in {"np", "numpy"} and node.attr not in {*NUMPY.split(), *NUMPY_WITH_ARGUMENT}:
        return f"np.{node.attr}: not known to be exact"
    if owner == "math" and node.attr not in MATH:
        return f"math.{node.attr}: not correctly rounded everywhere"
    if owner != "exact" and node.attr in METHODS:
        return f".{node.attr}: the order of its sum is free"
    return None


def _call(node: ast.AST) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
        return f"{node.func.id}(): depends on the version of Python"
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name not in NUMPY_WITH_ARGUMENT:
        return None
    argument, value = NUMPY_WITH_ARGUMENT[name]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    return None if given.get(argument) == value else f"{name}: needs {argument}={value}"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.parent.name)
def test_recipe_uses_only_exact_operations(recipe: Path) -> None:
    assert list(problems(recipe.read_text("utf-8"))) == []


def test_recipes_were_found() -> None:
    assert RECIPES


@pytest.mark.parametrize(
    "line",
    [
        "np.exp(x)", "np.log(x)", "np.sin(x)", "np.cos(x)", "np.tan(x)", "np.tanh(x)",
        "np.arctan2(y, x)", "np.hypot(x, y)", "np.power(x, 3)", "np.dot(x, y)", "np.matmul(x, y)",
        "np.einsum('ij,jk', x, y)", "np.tensordot(x, y)", "np.linalg.norm(x)", "np.fft.fft(x)",
        "np.random.default_rng(1)", "np.mean(x)", "np.float128(1)", "np.add.reduce(x)",
        "x.dot(y)", "x.mean()", "x.std()", "x.sum()", "x.cumsum()", "np.sum(x)", "np.argsort(x)",
        "x.sort()", "x @ y", "x @= y", "x ** 3", "x ** 0.5", "x **= y", "2.0 ** n", "1j * x",
        "math.exp(1)", "math.sin(1)", "math.pow(2, 3)", "math.fsum(x)", "sum(x)", "pow(2, x)",
        "import random", "import scipy.special", "from scipy import fft", "from math import exp",
        "from numpy import exp", "import numpy.random",
    ],
)  # fmt: skip
def test_operation_that_varies_is_found(line: str) -> None:
    assert len(list(problems(line))) >= 1


@pytest.mark.parametrize(
    "line",
    [
        "x * y + np.sqrt(x) / 3", "x ** 2", "2 ** 53", "np.sum(x, dtype=np.int64)",
        "x.sum(axis=0, dtype=np.int64)", "np.argsort(x, kind='stable')", "exact.exp(x)",
        "exact.matmul(x, y)", "math.sqrt(2)", "np.rint(x).astype(np.int16)", "import math",
        "np.maximum(x, 0.0)", "-x % 3 // 2",
    ],
)  # fmt: skip
def test_operation_that_is_exact_passes(line: str) -> None:
    assert list(problems(line)) == []
