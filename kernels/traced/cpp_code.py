"""A traced cost as a C++ function in a library of its own, for the native engine to call."""

from __future__ import annotations

import math

from .expression import Expression, Term, Value
from .trace import Features

# The name that the library exports, and its signature: `CostFunction` in kernels/cpu/problem.h.
SYMBOL = "sgp_cost"
INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "==", "and": "&&", "or": "||"}
CALLS = {
    "abs": "std::fabs", "sqrt": "std::sqrt", "exp": "std::exp", "expm1": "std::expm1", "log": "std::log",
    "log1p": "std::log1p", "sin": "std::sin", "cos": "std::cos", "tanh": "std::tanh", "floor": "std::floor",
    "round": "std::nearbyint", "erf": "std::erf", "atan": "std::atan", "pow": "std::pow", "atan2": "std::atan2",
    "max": "larger", "min": "smaller",
}  # fmt: skip
HEAD = """#include <cmath>
#include <limits>

namespace {
// As tensors have it: a NaN stays one.
inline float larger(float a, float b) { return a > b || a != a ? a : b; }
inline float smaller(float a, float b) { return a < b || a != a ? a : b; }
}  // namespace

"""


def source(expression: Expression, features: Features) -> str:
    """The text of the library, which exports a `CostFunction`."""
    lines = []
    for index, (op, args) in enumerate(expression.instructions):
        if op == "input":
            kind, text = "float", _load(expression.place(index), features)
        else:
            kind, text = _kind(op, args, expression), _call(op, [_name(arg) for arg in args])
        lines.append(f"    const {kind} v{index} = {text};")
    value, *gradient = expression.outputs
    lines += [f"    g[{place}] += {_name(out)};" for place, out in enumerate(gradient)]
    body = "\n".join([*lines, f"    values[n] = {_name(value)};"])
    return f"""{HEAD}extern "C" void {SYMBOL}(
    const float* rows, long ldz, const float* goals, long ldgoal, const float* all_params, long ldparams, int step,
    int steps, int count, int, float* values, float* gradient, long ldg) {{
  for (int n = 0; n < steps * count; n++) {{
    const int r = n % count;
    [[maybe_unused]] const float t = step + n / count;
    [[maybe_unused]] const float *z = rows + n * ldz, *goal = goals + r * ldgoal, *params = all_params + r * ldparams;
    [[maybe_unused]] float* g = gradient + n * ldg;
{body}
  }}
}}
"""


def _kind(op: str, args: tuple[Value, ...], expression: Expression) -> str:
    if op in ("lt", "le", "eq", "and", "or", "not"):
        return "bool"
    if op == "where":
        return "bool" if all(isinstance(a, bool) or (isinstance(a, Term) and a.logical) for a in args[1:]) else "float"
    return "float"


def _load(place: int, features: Features) -> str:
    """The text that reads an input."""
    group, at = features.group_of(place)
    texts = {"x": f"z[{at}]", "u": f"z[{features.nx + at}]", "t": "t"}
    return texts.get(group, f"{group}[{at}]")


def _call(op: str, args: list[str]) -> str:
    if op in INFIX:
        return f" {INFIX[op]} ".join(args)
    if op in ("neg", "not"):
        return f"{'-' if op == 'neg' else '!'}{args[0]}"
    if op == "where":
        return f"{args[0]} ? {args[1]} : {args[2]}"
    return f"{CALLS[op]}({', '.join(args)})"


def _name(value: Value) -> str:
    if isinstance(value, Term):
        return f"v{value.index}"
    if isinstance(value, bool):
        return str(value).lower()
    if math.isnan(value):
        return "std::numeric_limits<float>::quiet_NaN()"
    if math.isinf(value):
        return ("-" if value < 0 else "") + "std::numeric_limits<float>::infinity()"
    text = f"{value!r}f"
    return f"({text})" if value < 0 else text if "." in text or "e" in text else f"{value!r}.0f"
