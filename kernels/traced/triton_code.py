"""A traced cost as a Triton device function, for the kernels to call: rows are lanes, and a feature is a vector of them."""

from __future__ import annotations

import functools
import hashlib
import linecache
import math
from typing import Any

import triton
import triton.language as tl

from . import device
from .expression import Expression, Term, Value
from .trace import Features

INFIX = {"add": "+", "sub": "-", "mul": "*", "lt": "<", "le": "<=", "eq": "==", "and": "&", "or": "|"}
CALLS = {
    "abs": "tl.abs", "sqrt": "tl.sqrt", "exp": "tl.exp", "log": "tl.log", "sin": "tl.sin", "cos": "tl.cos", "erf": "tl.erf",
    "floor": "tl.floor", "where": "tl.where", "tanh": "tanh", "expm1": "expm1", "max": "largest", "min": "smallest",
    # Rounded as division is: the quick one of a GPU may be an ulp below a whole number, and floors would see that.
    "div": "tl.div_rn", "log1p": "log1p", "round": "nearest", "pow": "power", "atan": "atan", "atan2": "atan2",
}  # fmt: skip


@functools.lru_cache(maxsize=256)
def device_function(expression: Expression, features: Features) -> Any:
    """`(z, goal, params, t, out, inside) → value`, a jit function, of the expression of a cost with these features.

    z, goal, params and out point at a row each, `[rows]`: at x and u, at the goal, at the parameters, and to where the
    gradient in x and u goes, if there is one; `t [rows]` is the step. Rows that are not `inside` are neither read nor
    written.
    """
    from ..activations import expm1, tanh

    body = _body(expression, features)
    # A kernel that calls two functions of one name, with arguments of the same types, would call the first one twice.
    name = f"cost_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
    source = f"def {name}(z, goal, params, t, out, inside):\n{body}"
    # The compiler reads a function's text from its file; this one has none, and Python's cache of lines stands for it.
    file = f"<traced {name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    used = ("largest", "smallest", "log1p", "nearest", "power", "atan", "atan2")
    scope: dict[str, Any] = {"tl": tl, "tanh": tanh, "expm1": expm1, "__name__": __name__}
    scope |= {helper: getattr(device, helper) for helper in used}
    exec(compile(source, file, "exec"), scope)
    return triton.jit(scope[name])


def _body(expression: Expression, features: Features) -> str:
    """The function's text, below its name."""
    lines: list[str] = []
    for index, (op, args) in enumerate(expression.instructions):
        names = [_name(arg) for arg in args]
        lines.append(f"    v{index} = {_load(expression.place(index), features) if op == 'input' else _call(op, names)}")
    value, *gradient = expression.outputs
    lines += [f"    tl.store(out + {place}, {_name(g)}, mask=inside)" for place, g in enumerate(gradient)]
    whole = _name(value) if isinstance(value, Term) else f"inside.to(tl.float32) * 0.0 + {_name(value)}"
    return "\n".join([*lines, f"    return {whole}", ""])


def _load(place: int, features: Features) -> str:
    """The text that reads an input."""
    group, at = features.group_of(place)
    if group == "t":
        return "t.to(tl.float32)"
    pointer = {"x": "z", "u": f"z + {features.nx}"}.get(group, group)
    return f"tl.load({pointer} + {at}, mask=inside, other=0.0)"


def _call(op: str, args: list[str]) -> str:
    if op in INFIX:
        return f" {INFIX[op]} ".join(args)
    if op == "neg":
        return f"-{args[0]}"
    if op == "not":
        return f"{args[0]} == 0"
    return f"{CALLS[op]}({', '.join(args)})"


def _name(value: Value) -> str:
    if isinstance(value, Term):
        return f"v{value.index}"
    if isinstance(value, bool):
        return str(value)
    return f"({value!r})" if math.isfinite(value) else f'float("{value}")'
