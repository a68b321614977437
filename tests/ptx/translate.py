"""Instructions of PTX as statements of Python over arrays with an element per thread.

A register is a variable of its name: an array of unsigned integers, one a thread, or a scalar where all threads have the
same; a predicate holds truth values. `cta` in the statements is the `emulator.Cta` that runs them. Arithmetic of float32
rounds once an operation, approximations (`ex2.approx`, `div.full`) are exact here, and nothing is flushed to zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from tests.ptx.memory import SHARED_BASE, Fault
from tests.ptx.parse import Instruction, members

# How a type is held, and what its numbers are.
HELD = {
    "b16": ("u16", "u16"), "u16": ("u16", "u16"), "s16": ("u16", "i16"),
    "b32": ("u32", "u32"), "u32": ("u32", "u32"), "s32": ("u32", "i32"), "f32": ("u32", "f32"),
    "b64": ("u64", "u64"), "u64": ("u64", "u64"), "s64": ("u64", "i64"),
}  # fmt: skip
ROUNDINGS = {"rni": "rint", "rmi": "floor", "rpi": "ceil", "rzi": "trunc"}  # to whole numbers
BITS = {"u16": 16, "u32": 32, "u64": 64}
# Bytes, and the register's width.
MEMORY = {"b8": (1, "u16"), **{kind: (BITS[width] // 8, width) for kind, (width, _) in HELD.items()}}
SPECIAL = {"%tid.x": "cta.threads", "%ctaid.x": "cta.program_id", "%nctaid.x": "u32(cta.memory.programs)"}
COMPARED = {"lt": "<", "gt": ">", "le": "<=", "ge": ">=", "eq": "==", "ne": "!="}
LOGIC = {"and": "&", "or": "|", "xor": "^"}
FLOAT = {
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "neg": "-{0}", "abs": "np.abs({0})",
    "fma": "(np.asarray({0}).astype(np.float64) * {1} + {2})", "sqrt": "np.sqrt({0})", "rsqrt": "f32(1) / np.sqrt({0})",
    "rcp": "f32(1) / {0}", "ex2": "np.exp2({0})", "lg2": "np.log2({0})", "tanh": "np.tanh({0})",
    "min": "np.fmin({0}, {1})", "max": "np.fmax({0}, {1})",
    "min.NaN": "np.minimum({0}, {1})", "max.NaN": "np.maximum({0}, {1})",
}  # fmt: skip


def translated(instruction: Instruction) -> list[str]:
    """Statements that do what the instruction does. Raises Fault where it is not known."""
    operation = instruction.parts[0]
    translate = _FAMILIES.get(operation)
    statements = translate(instruction) if translate else None
    if statements is None:
        raise Fault(f"unknown instruction {instruction.opcode} {', '.join(instruction.operands)}")
    used = re.findall(r"%(r\d+)\b", " ".join(instruction.operands))
    if used and operation != "wgmma":
        statements.insert(0, f"if cta.unfinished: cta.use({used})")
    return statements


# Operands.


def name(register: str) -> str:
    return register.strip().removeprefix("%")


def value(operand: str, width: str) -> str:
    """An operand as unsigned integers of `width`."""
    operand = operand.strip()
    if operand in SPECIAL:
        return SPECIAL[operand]
    if operand.startswith("%"):
        return name(operand)
    if operand == "global_smem":
        return f"{width}({SHARED_BASE})"
    number = int(operand[2:], 16) if operand.startswith("0f") else int(operand.removesuffix("U"), 0)
    return f"{width}({number & (1 << BITS[width]) - 1})"


def number(operand: str, kind: str) -> str:
    """An operand as numbers of a type of PTX."""
    width, numbers = HELD[kind]
    return value(operand, width) if width == numbers else f"{value(operand, width)}.view({numbers})"


def held(expression: str, kind: str) -> str:
    """Numbers of a type as a register holds them."""
    width, numbers = HELD[kind]
    return expression if width == numbers else f"np.asarray({expression}, {numbers}).view({width})"


def address(operand: str, width: str) -> str:
    """Of `[register + offset]`."""
    found = re.fullmatch(r"\[(%\w+|global_smem)\+?(-?\d+)?\]", operand.replace(" ", ""))
    if found is None:
        raise Fault(f"unknown address {operand}")
    return f"({value(found[1], width)} + {value(found[2] or '0', width)})"


def condition(instruction: Instruction) -> str:
    """Which threads do it."""
    wanted = [(instruction.predicate, instruction.negated)] if instruction.predicate is not None else []
    wanted += [(skipped.lstrip("!"), not skipped.startswith("!")) for skipped in instruction.skipped]
    return " & ".join(f"~np.asarray({name(p)})" if negated else name(p) for p, negated in wanted) or "True"


def assign(instruction: Instruction, expression: str, to: str | None = None) -> list[str]:
    """Set the first operand, where the predicate holds."""
    target = name(to or instruction.operands[0])
    if instruction.skipped:
        before = f"cta.registers.get({target!r}, {expression})"
        return [f"{target} = np.where({condition(instruction)}, {expression}, {before})"]
    if instruction.predicate is not None:
        expression = f"np.where({condition(instruction)}, {expression}, {target})"
    return [f"{target} = {expression}"]


def _listed(registers: list[str], width: str) -> str:
    return "[" + ", ".join(value(register, width) for register in registers) + "]"


# Memory.


def _load(i: Instruction) -> list[str] | None:
    if i.parts[1] == "param":
        parameter = f"cta.parameters[{i.operands[1].strip('[]')!r}]"
        widened = i.type in ("s32", "u32") and i.operands[0].startswith("%rd")
        wide = f"np.asarray({parameter}).view({HELD[i.type][1]}).astype(i64).view(u64)"
        return assign(i, wide if widened else parameter)
    size, width = MEMORY[i.type]
    registers = [name(register) for register in members(i.operands[0])]
    call, at = _access(i, i.operands[1])
    return [f"{', '.join(registers)}, = cta.load_{call}({condition(i)}, {at}, {registers}, {size}, {width})"]


def _store(i: Instruction) -> list[str] | None:
    size, width = MEMORY[i.type]
    values = _listed(members(i.operands[1]), width)
    call, at = _access(i, i.operands[0])
    release = f", {'release' in i.parts}" if call == "words" else ""
    return [f"cta.store_{call}({condition(i)}, {at}, {values}, {size}{release})"]


def _access(i: Instruction, operand: str) -> tuple[str, str]:
    """The memory, and an address in it."""
    if i.parts[1].startswith("shared"):
        return "shared", address(operand, "u32")
    if i.parts[1] == "global":
        return "global", address(operand, "u64")
    if re.match(r"\w+\.(relaxed|acquire|release)\.gpu\.global\.", i.opcode):
        return "words", address(operand, "u64")
    raise Fault(f"unknown access {i.opcode}")


def _reduce(i: Instruction) -> list[str] | None:
    found = re.fullmatch(r"red\.(relaxed|release)\.gpu\.global\.add\.[us]32", i.opcode)
    if found is None:
        return None
    amount = value(i.operands[1], "u32")
    return [f"cta.count({condition(i)}, {address(i.operands[0], 'u64')}, {amount}, {found[1] == 'release'})"]


def _ldmatrix(i: Instruction) -> list[str] | None:
    registers = [name(register) for register in members(i.operands[0])]
    if i.type != "b16" or "m8n8" not in i.parts:
        return None
    call = f"cta.load_matrices({address(i.operands[1], 'u32')}, {len(registers)}, transposed={'trans' in i.parts})"
    return _always(i, f"{', '.join(registers)}, = {call}")


def _stmatrix(i: Instruction) -> list[str]:
    values = _listed(members(i.operands[1]), "u32")
    return _always(i, f"cta.store_matrices({address(i.operands[0], 'u32')}, {values}, transposed={'trans' in i.parts})")


# Barriers, copies and products.


def _always(i: Instruction, statement: str) -> list[str]:
    if i.predicate is not None or i.skipped:
        raise Fault(f"{i.opcode} with a predicate")
    return [statement]


def _fence(i: Instruction) -> list[str] | None:
    return _always(i, "cta.fence()") if i.opcode.startswith("fence.proxy.async") else None


def _mbarrier(i: Instruction) -> list[str] | None:
    if i.parts[1] == "init":
        return [f"cta.init_barrier({condition(i)}, {address(i.operands[0], 'u32')}, {int(i.operands[1])})"]
    if i.parts[1:3] == ["arrive", "expect_tx"]:
        return [f"cta.expect({condition(i)}, {address(i.operands[1], 'u32')}, {int(i.operands[2])})"]
    if i.parts[1:3] == ["try_wait", "parity"]:
        return _always(i, f"cta.wait({address(i.operands[1], 'u32')}, {value(i.operands[2], 'u32')})")
    return None


def _copy(i: Instruction) -> list[str] | None:
    found = re.match(r"\[(%\w+),\s*\{(.*)\}\]", i.operands[1])
    # Of a program that is no cluster's, both say the same.
    if found is None or not re.match(r"cp\.async\.bulk\.tensor\.2d\.shared::(cta|cluster)\.global", i.opcode):
        return None
    column, row = (value(register, "u32") for register in found[2].split(","))
    to, barrier = address(i.operands[0], "u32"), address(i.operands[2], "u32")
    return [f"cta.copy({condition(i)}, {to}, {name(found[1])}, {column}, {row}, {barrier})"]


def _wgmma(i: Instruction) -> list[str] | None:
    if i.parts[1] == "fence":
        return _always(i, "pass")
    if i.parts[1] == "commit_group":
        return _always(i, "cta.commit()")
    if i.parts[1] == "wait_group":
        return _always(i, f"cta.wait_for_products({int(i.operands[0])})")
    shape = re.match(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(b?f16)\.b?f16$", i.opcode)
    if shape is None or not i.operands[1].startswith("%rd") or i.operands[4:6] != ("1", "1"):
        return None
    registers = [name(register) for register in members(i.operands[0])]
    a, b, adds = (name(operand) for operand in i.operands[1:4])
    transposed = f"{i.operands[6] == '1'}, {i.operands[7] == '1'}"
    adds = f"bool({adds})" if adds.isdigit() else adds
    return _always(i, f"cta.product({shape[1]}, {shape[2]!r}, {registers}, {a}, {b}, {adds}, {transposed})")


def _mma(i: Instruction) -> list[str] | None:
    found = re.fullmatch(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(b?f16)\.\1\.f32", i.opcode)
    if found is None:
        return None
    to, *operands = (members(operand) for operand in i.operands)
    a, b, c = (_listed(registers, "u32") for registers in operands)
    return _always(i, f"{', '.join(map(name, to))}, = cta.product_of_warps({found[1]!r}, {a}, {b}, {c})")


# Between the threads of a warp.


def _elect(i: Instruction) -> list[str]:
    return [f"{name(i.operands[0].split('|')[1])} = cta.elected()"]


def _shuffle(i: Instruction) -> list[str]:
    to, (x, by) = i.operands[0].split("|")[0], (value(operand, "u32") for operand in i.operands[1:3])
    return _always(i, f"{name(to)} = cta.shuffle({i.parts[2]!r}, {x}, {by})")


def _redux(i: Instruction) -> list[str] | None:
    return assign(i, f"cta.sum_of_warp({value(i.operands[1], 'u32')})") if i.parts[2] == "add" else None


# Moves, comparisons and choices.


def _move(i: Instruction) -> list[str] | None:
    to, source = i.operands
    if i.type == "pred":
        return assign(i, name(source) if source.startswith("%") else f"np.bool_({int(source) != 0})")
    if to.startswith("{") or source.startswith("{"):
        whole, part, bits = ("u32", "u16", 16) if i.type == "b32" else ("u64", "u32", 32)
        if to.startswith("{"):
            shifts = {p: f"{value(source, whole)} >> {whole}({bits * k})" for k, p in enumerate(members(to)) if p != "_"}
            return [line for p, shifted in shifts.items() for line in assign(i, f"({shifted}).astype({part})", p)]
        shifted = [f"({value(p, part)}.astype({whole}) << {whole}({bits * k}))" for k, p in enumerate(members(source))]
        return assign(i, " | ".join(shifted))
    if "_param_" in source:
        return assign(i, f"cta.parameters[{source!r}]")
    return assign(i, value(source, HELD[i.type][0]))


def _address_space(i: Instruction) -> list[str]:
    return assign(i, name(i.operands[1]))


def _half(kind: str) -> str:
    return "from_bf16" if kind.startswith("bf16") else "from_f16"


def _set_predicate(i: Instruction) -> list[str] | None:
    compared, kind = i.parts[1], i.type
    to, first, second = i.operands[:3]
    if len(i.operands) != 3:
        return None  # combined with another predicate
    if kind in ("f16x2", "bf16x2"):
        statements = []
        for target, shift in zip(to.split("|"), (0, 16), strict=True):
            x, y = (f"{_half(kind)}({value(o, 'u32')} >> u32({shift}) & u32(0xFFFF))" for o in (first, second))
            statements += assign(i, f"({x} {COMPARED[compared]} {y})", target)
        return statements
    if kind in ("f16", "bf16"):
        x, y = (f"{_half(kind)}({value(o, 'u16')})" for o in (first, second))
        return assign(i, f"({x} {COMPARED[compared]} {y})")
    x, y = number(first, kind), number(second, kind)
    unordered = f"(np.isnan({x}) | np.isnan({y}))" if kind == "f32" else ""
    if compared in ("nan", "num"):
        return assign(i, unordered if compared == "nan" else f"~{unordered}")
    if compared in COMPARED:
        ordered = f" & ~{unordered}" if unordered and compared == "ne" else ""
        return assign(i, f"(({x} {COMPARED[compared]} {y}){ordered})")
    if unordered and compared.removesuffix("u") in COMPARED:
        return assign(i, f"(({x} {COMPARED[compared.removesuffix('u')]} {y}) | {unordered})")
    return None


def _select(i: Instruction) -> list[str]:
    width, (_, yes, no, predicate) = HELD[i.type][0], i.operands
    return assign(i, f"np.where({name(predicate)}, {value(yes, width)}, {value(no, width)})")


def _logic(i: Instruction) -> list[str]:
    x, y = (f"np.asarray({name(o)})" if i.type == "pred" else value(o, HELD[i.type][0]) for o in i.operands[1:])
    return assign(i, f"({x} {LOGIC[i.parts[0]]} {y})")


def _not(i: Instruction) -> list[str]:
    x = i.operands[1]
    return assign(i, f"~np.asarray({name(x)})" if i.type == "pred" else f"~{value(x, HELD[i.type][0])}")


def _convert(i: Instruction) -> list[str] | None:
    to, kind = i.parts[-2:]
    source = i.operands[1]
    if to in ("f16x2", "bf16x2") and kind == "f32":
        high, low = (f"to_{to[:-2]}({number(o, 'f32')}).astype(u32)" for o in i.operands[1:])
        return assign(i, f"({high} << u32(16) | {low})")
    if to in ("f16", "bf16") and kind == "f32":
        return assign(i, f"to_{to}({number(source, 'f32')})")
    if to == "f32" and kind in ("f16", "bf16"):
        return assign(i, f"{_half(kind)}({value(source, 'u16')}).view(u32)")
    if to == kind == "f32" and (rounding := ROUNDINGS.get(i.parts[1])):
        return assign(i, f"np.{rounding}({number(source, 'f32')}).view(u32)")
    if to == "f32" and kind in ("s32", "u32", "s64", "u64"):
        return assign(i, f"np.asarray({number(source, kind)}).astype(f32).view(u32)")
    if kind in ("s8", "u8"):
        byte = f"np.asarray({value(source, 'u16')}).astype(u8)" + (".view(i8)" if kind == "s8" else "")
        width, numbers = HELD[to]
        return assign(i, f"{byte}.astype({numbers}).view({width})")
    if to in HELD and kind in HELD and "f32" not in (to, kind):
        return assign(i, f"{_wide(source, kind, HELD[to][1])}.view({HELD[to][0]})")
    return None


# Loops that ask for words.


def asked(loop: list[Instruction]) -> str:
    """Of a loop's words: for each load which threads do it, the address, how many bytes, and whether it acquires.

    A predicate that the loop makes itself says which threads ask again; all have asked.
    """
    made, found = _made(loop), []
    for i in loop:
        if i.parts[0] == "ld" and _access(i, i.operands[1])[0] == "words":
            on = condition(replace(i, predicate=None) if i.predicate in made else i)
            size = len(members(i.operands[0])) * MEMORY[i.type][0]
            found.append(f"({on}, {address(i.operands[1], 'u64')}, {size}, {'acquire' in i.parts})")
    return f"[{', '.join(found)}]"


def awaited(loop: list[Instruction]) -> str:
    """The integers that a loop is given, which are what it compares words with."""
    made = _made(loop)
    operands = [o for i in loop if i.type in ("b32", "s32", "u32") and i.parts[0] != "ld" for o in i.operands[1:]]
    given = dict.fromkeys(o for o in operands if o.startswith("%") and o not in made)
    return f"[{', '.join(name(register) for register in given)}]"


def _made(loop: list[Instruction]) -> set[str]:
    return {register for i in loop if i.operands for register in members(i.operands[0])}


# Arithmetic.


def _wide(operand: str, kind: str, to: str) -> str:
    """An integer as another type of NumPy; registers may be wider than an instruction reads them."""
    width, numbers = HELD[kind]
    return f"np.asarray({value(operand, width)}).astype({width}).view({numbers}).astype({to})"


def _arithmetic(i: Instruction) -> list[str] | None:
    if i.type == "f32":
        operation = i.parts[0] + (".NaN" if "NaN" in i.parts else "")
        expression = FLOAT.get(operation, "")
        return assign(i, held(expression.format(*(number(o, "f32") for o in i.operands[1:])), "f32")) if expression else None
    if i.type in ("f16", "bf16"):
        return assign(i, f"({value(i.operands[1], 'u16')} & u16(0x7FFF))") if i.parts[0] == "abs" else None
    return _integers(i)


def _integers(i: Instruction) -> list[str] | None:
    operation, kind, (_, *operands) = i.parts[0], i.type, i.operands
    width = HELD[kind][0]
    x = [value(o, width) for o in operands] if operation not in ("shl", "shr", "bfe") else []
    if operation in ("add", "sub"):
        return assign(i, f"({x[0]} {'+' if operation == 'add' else '-'} {x[1]})")
    if operation == "neg":
        return assign(i, f"({width}(0) - {x[0]})")
    if operation in ("mul", "mad"):
        return _multiply(i, operands)
    if operation in ("min", "max"):
        a, b = (number(o, kind) for o in operands)
        return assign(i, held(f"np.{operation}imum({a}, {b})", kind))
    if operation in ("rem", "div"):
        a, b = (number(o, kind) for o in operands)
        rest = f"np.fmod({a}, {b})"
        return assign(i, held(rest if operation == "rem" else f"(({a} - {rest}) // {b})", kind))
    return None


def _multiply(i: Instruction, operands: list[str]) -> list[str] | None:
    """`mul` and `mad`: the low half, the high half, or all of a product."""
    part, kind = i.parts[1], i.type
    width, numbers = HELD[kind]
    wide = "i64" if kind.startswith("s") else "u64"
    whole = f"({_wide(operands[0], kind, wide)} * {_wide(operands[1], kind, wide)})"
    if part == "lo":
        product = f"({value(operands[0], width)} * {value(operands[1], width)})"
    elif part == "wide":
        product, width = f"{whole}.view(u64)", "u64"
    elif part == "hi" and kind in ("s32", "u32"):
        product = f"({whole} >> {wide}(32)).astype({numbers}).view({width})"
    else:
        return None
    return assign(i, product if i.parts[0] == "mul" else f"({product} + {value(operands[2], width)})")


def _shift(i: Instruction) -> list[str]:
    """By less than the width; what PTX says of more is not modelled."""
    _, operand, by = i.operands
    width, numbers = HELD[i.type]
    amount = f"np.asarray({value(by, 'u32')}).astype({numbers})"
    return assign(i, held(f"({number(operand, i.type)} {'<<' if i.parts[0] == 'shl' else '>>'} {amount})", i.type))


def _bit_field(i: Instruction) -> list[str]:
    _, operand, first, length = i.operands
    width, numbers = HELD[i.type]
    unused = BITS[width] - int(length)
    lifted = f"np.asarray({value(operand, width)} << {width}({unused - int(first)})).view({numbers})"
    return assign(i, held(f"({lifted} >> {numbers}({unused}))", i.type))


def _permute(i: Instruction) -> list[str] | None:
    low, high, selectors = (value(o, "u32") for o in i.operands[1:])
    return assign(i, f"permuted({low}, {high}, {selectors})") if i.opcode == "prmt.b32" else None


_FAMILIES: dict[str, Callable[[Instruction], list[str] | None]] = {
    "ld": _load, "st": _store, "red": _reduce, "stmatrix": _stmatrix, "ldmatrix": _ldmatrix, "mma": _mma,
    "fence": _fence, "mbarrier": _mbarrier, "cp": _copy, "wgmma": _wgmma,
    "bar": lambda i: _always(i, "cta.barrier()") if i.opcode == "bar.sync" else None,
    "trap": lambda i: [f"cta.trap({condition(i)})"],
    "elect": _elect, "shfl": _shuffle, "redux": _redux, "mov": _move, "cvta": _address_space, "setp": _set_predicate,
    "selp": _select, "not": _not, "cvt": _convert, "shl": _shift, "shr": _shift, "bfe": _bit_field, "prmt": _permute,
    **dict.fromkeys(LOGIC, _logic), **dict.fromkeys((*(n for n in FLOAT if "." not in n), "mad", "rem"), _arithmetic),
}  # fmt: skip
