"""Runs what Pallas hands to Triton, instruction by instruction in numpy: no GPU is needed.

Interpret mode runs a kernel's JAX program; this runs the Triton program that it is lowered to, with
its pointers, masks, loops and inline PTX. A load or a store out of bounds, and an element that is
written not once, are errors.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src.lib.mlir import ir
from jax._src.lib.triton import dialect
from jax.experimental import pallas as pl

_PALLAS_CALL = pl.pallas_call
CALL = "__gpu$xla.gpu.triton"


class Pointer(NamedTuple):
    """Elements of one of the kernel's arguments."""

    buffer: int
    offset: np.ndarray


def pallas_call(kernel: Callable, **options: Any) -> Callable:
    """Takes the place of ``pl.pallas_call``."""

    def call(*args):
        lowered = jax.jit(_PALLAS_CALL(kernel, **options)).trace(*args)
        module = lowered.lower(lowering_platforms=("cuda",)).compiler_ir("stablehlo")
        program = Program(module)
        outputs, tree = jax.tree.flatten(options["out_shape"])
        inputs = jax.tree.leaves(args)
        found = jax.pure_callback(
            lambda *inputs: program(inputs, outputs),
            [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
            *inputs,
        )
        return jax.tree.unflatten(tree, found)

    return call


class Program:
    """The one Triton kernel of a lowered module, as numpy functions."""

    def __init__(self, module: Any):
        (call,) = _operations(module, "stablehlo.custom_call")
        assert CALL in str(call.attributes["call_target_name"])
        self.numbers: dict[Any, int] = {}
        config = call.attributes["mhlo.backend_config"]
        self.grid = [ir.IntegerAttr(config[f"grid_{axis}"]).value for axis in "xyz"]
        with module.context:
            dialect.register_dialect(module.context)
            kernel = ir.Module.parse(ir.StringAttr(config["ir"]).value_bytes, module.context)
        (function,) = _operations(kernel, "tt.func")
        self.kernel, block = kernel, function.regions[0].blocks[0]
        self.arguments = [self._number(x) for x in block.arguments]
        self.steps = self._translate(block)

    def __call__(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[np.ndarray]:
        results = [np.zeros(x.shape, x.dtype) for x in outputs]
        self.buffers = [np.array(x).reshape(-1) for x in inputs] + [x.reshape(-1) for x in results]
        self.written = [np.zeros(x.size, int) for x in self.buffers]
        for ids in np.ndindex(*self.grid):
            self.ids = ids
            values: dict[int, Any] = {
                at: Pointer(i, np.int64(0)) for i, at in enumerate(self.arguments)
            }
            with np.errstate(over="ignore", under="ignore"):
                self._run(self.steps, values)
        assert all((x == 1).all() for x in self.written[len(inputs) :])
        return results

    def _number(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def _run(self, steps: list, values: dict[int, Any]) -> list[Any]:
        for function, operands, results in steps:
            found = function(*[values[x] for x in operands])
            if function is _finish:
                return found
            if len(results) == 1:
                values[results[0]] = found
            else:
                values.update(zip(results, found or (), strict=True))
        return []

    def _translate(self, block: Any) -> list:
        steps = []
        for each in block.operations:
            op = each.operation
            operands = [self._number(x) for x in op.operands]
            # A loop's body sees the values around it.
            extra = []
            if op.name == "scf.for":
                function, extra = self._loop(op)
            else:
                function = self._function(op)
            steps.append((function, operands + extra, [self._number(x) for x in op.results]))
        return steps

    def _loop(self, op: Any) -> tuple[Callable, list[int]]:
        body = op.regions[0].blocks[0]
        known = set(self.numbers.values())
        arguments = [self._number(x) for x in body.arguments]
        steps = self._translate(body)
        outer = sorted({x for x in _read(steps) if x in known})

        def loop(low, high, step, *rest):
            carried, around = list(rest[: len(arguments) - 1]), rest[len(arguments) - 1 :]
            for index in range(int(low), int(high), int(step)):
                values = dict(zip(outer, around, strict=True))
                values |= zip(arguments, [np.int32(index), *carried], strict=True)
                carried = self._run(steps, values)
            return carried[0] if len(carried) == 1 else carried

        return loop, outer

    def _function(self, op: Any) -> Callable:
        name, attributes = op.name, op.attributes
        integer = lambda key: ir.IntegerAttr(attributes[key]).value
        if name in _SIMPLE:
            return _SIMPLE[name]
        if name == "arith.constant":
            value = _constant(attributes["value"], op.results[0].type)
            return lambda: value
        if name in ("arith.cmpi", "arith.cmpf"):
            return _COMPARISONS[name, integer("predicate")]
        if name in ("arith.truncf", "arith.extf", "tt.fp_to_fp", "arith.sitofp"):
            dtype = _dtype(op.results[0].type)
            return lambda x, *_: x.astype(dtype)
        if name in ("tt.splat", "tt.broadcast"):
            to = tuple(ir.RankedTensorType(op.results[0].type).shape)
            return lambda x: _each(lambda y: np.broadcast_to(y, to), x)
        if name == "tt.make_range":
            numbers = np.arange(integer("start"), integer("end"), dtype=np.int32)
            return lambda: numbers
        if name == "tt.trans":
            return lambda x: x.T
        if name in ("tt.expand_dims", "tt.get_program_id", "tt.reduce"):
            axis = integer("axis")
            if name == "tt.expand_dims":
                return lambda x: _each(lambda y: np.expand_dims(y, axis), x)
            if name == "tt.get_program_id":
                return lambda: np.int32(self.ids[axis])
            inner = op.regions[0].blocks[0].operations[0].operation.name
            reduce = {"arith.addf": np.add, "arith.maxnumf": np.maximum}[inner].reduce
            return lambda x: reduce(x, axis=axis)
        if name == "tt.extern_elementwise":
            return {"__nv_exp2f": np.exp2, "__nv_logf": np.log}[
                ir.StringAttr(attributes["symbol"]).value
            ]
        if name == "tt.elementwise_inline_asm":
            asm = ir.StringAttr(attributes["asm_string"]).value
            return lambda *x: ptx(asm, x)
        if name in ("tt.load", "tt.store"):
            return self._load if name == "tt.load" else self._store
        raise NotImplementedError(str(op))

    def _load(self, pointer: Pointer) -> np.ndarray:
        buffer = self.buffers[pointer.buffer]
        assert (pointer.offset >= 0).all() and (pointer.offset < buffer.size).all()
        return buffer[pointer.offset]

    def _store(self, pointer: Pointer, value: np.ndarray) -> None:
        buffer = self.buffers[pointer.buffer]
        assert (pointer.offset >= 0).all() and (pointer.offset < buffer.size).all()
        buffer[pointer.offset] = value
        np.add.at(self.written[pointer.buffer], pointer.offset, 1)


def ptx(asm: str, operands: Sequence[np.ndarray]) -> np.ndarray:
    """The few instructions that the kernels write themselves, on float32."""
    registers = {f"${i}": x for i, x in enumerate(operands, 1)}
    number = lambda word: (
        np.uint32(int(word[2:], 16)).view(np.float32) if word.startswith("0f") else registers[word]
    )
    for line in asm.strip("{ }").split(";"):
        if not (words := re.split(r"[\s,]+", line.strip()))[0] or words[0] == ".reg":
            continue
        name, to, *of = words
        if name == "fma.rn.ftz.f32":
            x, y, z = (np.asarray(number(word), np.float64) for word in of)
            registers[to] = (x * y + z).astype(np.float32)
        elif name == "ex2.approx.ftz.f32":
            power = np.exp2(number(of[0]))
            registers[to] = np.where(power < np.finfo(np.float32).tiny, np.float32(0), power)
        else:
            raise NotImplementedError(line)
    return registers["$0"]


def _operations(module: Any, name: str) -> list[Any]:
    found = []

    def visit(op):
        if op.operation.name == name:
            found.append(op.operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def _read(steps: list) -> list[int]:
    return [x for _, operands, _ in steps for x in operands]


def _finish(*values: Any) -> list[Any]:
    return list(values)


def _each(function: Callable, x: Any) -> Any:
    return Pointer(x.buffer, function(x.offset)) if isinstance(x, Pointer) else function(x)


def _dtype(of: Any) -> np.dtype:
    """Of a number or a tensor's numbers."""
    names = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i32": "int32", "i64": "int64"}
    element = re.split("[<x]", str(of).rstrip(">"))[-1]
    return jax.numpy.dtype(names.get(element, "bool"))


def _constant(attribute: Any, of: Any) -> Any:
    kind = ir.IntegerAttr if str(of).startswith("i") else ir.FloatAttr
    return np.asarray(kind(attribute).value).astype(_dtype(of))[()]


def _float32(function: Callable) -> Callable:
    """In float32, rounded to the operands' type."""
    return lambda x, y: function(np.float32(x), np.float32(y)).astype(x.dtype)


def _truncated(x, y):
    return np.asarray(np.trunc(np.float64(x) / np.float64(y))).astype(np.int32)[()]


_SIMPLE: dict[str, Callable] = {
    "arith.addi": operator.add,
    "arith.subi": operator.sub,
    "arith.muli": operator.mul,
    "arith.divsi": _truncated,
    "arith.divui": _truncated,
    "arith.remsi": np.fmod,
    "arith.remui": np.fmod,
    "arith.andi": operator.and_,
    "arith.xori": operator.xor,
    "arith.shrui": lambda x, y: (x.view(np.uint32) >> y.view(np.uint32)).view(np.int32),
    "arith.addf": _float32(operator.add),
    "arith.subf": _float32(operator.sub),
    "arith.mulf": _float32(operator.mul),
    "arith.divf": _float32(operator.truediv),
    "arith.maxnumf": np.maximum,
    "arith.select": np.where,
    "tt.addptr": lambda p, x: Pointer(p.buffer, p.offset + np.int64(x)),
    "tt.dot": lambda x, y, z: np.float32(x) @ np.float32(y) + z,
    "tt.return": lambda: None,
    "scf.yield": _finish,
}
_COMPARISONS = {
    ("arith.cmpi", 2): operator.lt, ("arith.cmpi", 3): operator.le,
    ("arith.cmpi", 4): operator.gt, ("arith.cmpi", 5): operator.ge,
    ("arith.cmpi", 0): operator.eq, ("arith.cmpf", 1): operator.eq,
}  # fmt: skip
