"""From emitted kernels and the program's IR to machine code, by LLVM alone.

Numba would optimise and compile a kernel again in every function that calls it; here the kernels are one module and the
program is another, each optimised once and kept as an object file. Two modules, because two processes can make
them at the same time. A warm start loads the objects with llvmlite and never imports Numba.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir

from nanochat_tui.engine.layout.kinds import ALL
from nanochat_tui.engine.simd import NARROW
from nanochat_tui.engine.simd.base import Isa
from nanochat_tui.engine.simd.emitter import F32, I64, Emitter
from nanochat_tui.engine.simd.objects import OPTIMISATION, host_machine, load_objects, symbol

LLVM_TYPES = {"i": I64, "f": F32, "d": ir.DoubleType(), "v": ir.VoidType()}


@dataclass(frozen=True)
class Target:
    """What code is made for: instruction set, weights per ternary scale (64 or 128), processor."""

    isa: Isa
    group: int
    cpu: str
    features: str
    """LLVM's text form, e.g. "+avx2,+fma,-avx512f"."""
    kinds: frozenset[int] = ALL
    """Kinds of matrices (see `layout.kinds`) that code is made for."""
    triple: str | None = None
    """LLVM's name of another platform than this one, to look at its code."""
    known: frozenset[tuple[str, int]] = frozenset()
    """Names of slots and the values that they have in all tables of a model."""


@dataclass(frozen=True)
class EmittedKernel:
    """A kernel before compilation: `signature` as in `intrinsics.kernel`."""

    name: str
    signature: str
    emit: Callable[..., Any]
    kind: int | None = None
    tokens: int = 1
    tiles: bool = False

    def is_in(self, target: Target) -> bool:
        """Whether code for a target holds this kernel."""
        fits = self.tokens <= target.isa.tile and (target.isa.tiles is not None or not self.tiles)
        return fits and (self.kind is None or self.kind in target.kinds)


KERNELS: dict[str, EmittedKernel] = {}
SIGNATURES: dict[str, str] = {}
"""Signatures of kernels, and of the functions around them, with the letters of tables (see `layout.table`)."""


def function_type(signature: str) -> ir.FunctionType:
    """Return the LLVM type of a kernel."""
    result, parameters = signature.split(":")
    return ir.FunctionType(LLVM_TYPES[result], [LLVM_TYPES[p] for p in parameters])


def kernels_ir(target: Target, names: Collection[str] | None = None) -> str:
    """Return the LLVM IR of a target's kernels: all, or some and what they call."""
    module = ir.Module("nanochat_kernels")
    module.triple = target.triple or binding.get_process_triple()
    kernels = {symbol(kernel.name): kernel for kernel in KERNELS.values() if kernel.is_in(target)}
    functions = {name: ir.Function(module, function_type(k.signature), name) for name, k in kernels.items()}
    if NARROW in target.features.split(","):
        for function in functions.values():
            # llvmlite knows no attributes with values; without this one the feature is only a preference
            set.add(function.attributes, '"min-legal-vector-width"="0"')
    waiting = [name for name, kernel in kernels.items() if names is None or kernel.name in names]
    while waiting:
        function = functions.pop(waiting.pop(), None)
        if function is None:
            continue
        kernel = kernels[function.name]
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        value = kernel.emit(Emitter(builder, target.isa.hardware_half), target, *function.args)
        if kernel.signature.startswith("v:"):
            builder.ret_void()
        else:
            builder.ret(value)
        calls = (i.callee.name for block in function.blocks for i in block.instructions if i.opname == "call")
        waiting += [name for name in calls if name in functions]
    return str(module)


def declare_placeholders(names: Iterable[str]) -> None:
    """Give symbols an address, because Numba's own linker insists on one; it is never called."""
    for name in names:
        binding.add_symbol(symbol(name), _unreachable_address())


def _unreachable_address() -> int:
    return ctypes.cast(ctypes.pythonapi.Py_FatalError, ctypes.c_void_p).value or 0


@dataclass(frozen=True)
class Lowered:
    """A function as Numba left it: `text` is an LLVM module with `inner`, which has Numba's own calling convention."""

    name: str
    signature: str
    inner: str
    text: str


def _wrappers_ir(functions: Iterable[Lowered]) -> str:
    """Return a module with a C function around every Numba function, which returns a status and its value by address.

    The program has no way to raise, so the status is ignored.
    """
    module = ir.Module("nanochat_program")
    module.triple = binding.get_process_triple()
    for lowered in functions:
        outer = function_type(lowered.signature)
        byte = ir.IntType(8).as_pointer()
        nothing = isinstance(outer.return_type, ir.VoidType)
        places = [byte if nothing else outer.return_type, byte]
        inner_type = ir.FunctionType(ir.IntType(32), [*(p.as_pointer() for p in places), *outer.args])
        inner = ir.Function(module, inner_type, lowered.inner)
        function = ir.Function(module, outer, symbol(lowered.name))
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        result, error = (builder.alloca(place) for place in places)
        builder.call(inner, [result, error, *function.args])
        if nothing:
            builder.ret_void()
        else:
            builder.ret(builder.load(result))
    return str(module)


def _machine(target: Target) -> Any:
    if target.triple is None:
        return host_machine(target.cpu, target.features)
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    made = binding.Target.from_triple(target.triple)
    return made.create_target_machine(
        cpu=target.cpu, features=target.features, opt=OPTIMISATION, reloc="pic", codemodel="small"
    )


def compile_object(target: Target, names: Collection[str] | None = None) -> bytes:
    """Return object code of a target's kernels: all, or some and what they call."""
    machine, module = _optimised(target, [kernels_ir(target, names)])
    return bytes(machine.emit_object(module))


def compile_functions(target: Target, functions: Sequence[Lowered], root: str) -> bytes:
    """Return object code of functions, of which only `root` is visible, so that LLVM may inline and drop the rest."""
    texts = [_wrappers_ir(functions), *(function.text for function in functions)]
    machine, module = _optimised(target, texts, symbol(root))
    return bytes(machine.emit_object(module))


def compile_assembly(target: Target, names: Collection[str] | None = None) -> str:
    """Return the assembly of all or some kernels, to look at the instructions chosen for a target."""
    machine, module = _optimised(target, [kernels_ir(target, names)])
    return str(machine.emit_assembly(module))


def functions_assembly(target: Target, functions: Sequence[Lowered], root: str) -> str:
    """Return the assembly of what `compile_functions` makes."""
    texts = [_wrappers_ir(functions), *(function.text for function in functions)]
    machine, module = _optimised(target, texts, symbol(root))
    return str(machine.emit_assembly(module))


def _optimised(target: Target, texts: Sequence[str], only: str | None = None) -> tuple[Any, Any]:
    """Link modules and optimise them; only: the one function that stays visible, None for all."""
    machine = _machine(target)
    module, *others = (binding.parse_assembly(text) for text in texts)
    for part in (module, *others):
        part.data_layout = str(machine.target_data)
        if target.triple is not None:
            part.triple = target.triple  # what Numba lowers is the same for every 64-bit platform, and says this one
    for part in others:
        module.link_in(part)
    for function in module.functions if only else ():
        if not function.is_declaration and function.name != only:
            function.linkage = "internal"
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=OPTIMISATION)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine, module


def load_object(target: Target, code: bytes, names: list[str]) -> dict[str, int]:
    """Load a target's object file into the process, see `objects.load_objects`."""
    return load_objects(target.cpu, target.features, [code], names)
