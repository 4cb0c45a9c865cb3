"""From emitted kernels and the program's IR to machine code, by LLVM alone.

Numba would optimise and compile a kernel again in every function that calls it; here everything is linked
into one module, optimised once, and kept as one object file. A warm start loads that object with llvmlite and never
imports Numba.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir

from nanochat_tui.engine.kernels.kinds import ALL
from nanochat_tui.engine.simd.base import Isa
from nanochat_tui.engine.simd.emitter import F32, I64, Emitter

LLVM_TYPES = {"i": I64, "f": F32, "v": ir.VoidType()}
OPTIMISATION = 2
ENTRY_NAME, ENTRY_ARGUMENTS = "nanochat_entry", 6


@dataclass(frozen=True)
class Target:
    """What code is made for: instruction set, weights per ternary scale (64 or 128), processor."""

    isa: Isa
    group: int
    cpu: str
    features: str
    """LLVM's text form, e.g. "+avx2,+fma,-avx512f"."""
    kinds: frozenset[int] = ALL
    """Kinds of matrices (see `kernels.kinds`) that code is made for."""
    triple: str | None = None
    """LLVM's name of another platform than this one, to look at its code."""


@dataclass(frozen=True)
class EmittedKernel:
    """A kernel before compilation: `signature` as in `intrinsics.kernel`."""

    name: str
    signature: str
    emit: Callable[..., Any]
    kind: int | None = None
    tokens: int = 1

    def is_in(self, target: Target) -> bool:
        """Whether code for a target holds this kernel."""
        return self.tokens <= target.isa.tile and (self.kind is None or self.kind in target.kinds)


KERNELS: dict[str, EmittedKernel] = {}


def symbol(name: str) -> str:
    """Return the name by which the program links to a kernel."""
    return f"nanochat_{name}"


def function_type(signature: str) -> ir.FunctionType:
    """Return the LLVM type of a kernel."""
    result, parameters = signature.split(":")
    return ir.FunctionType(LLVM_TYPES[result], [LLVM_TYPES[p] for p in parameters])


def _unreachable_address() -> int:
    return ctypes.cast(ctypes.pythonapi.Py_FatalError, ctypes.c_void_p).value or 0


def declare_placeholders() -> None:
    """Give every kernel's symbol an address, because Numba's own linker insists on one; it is never called."""
    for name in KERNELS:
        binding.add_symbol(symbol(name), _unreachable_address())


def _add_entry(module: ir.Module, name: str) -> None:
    """Define ENTRY_NAME: a C function around a Numba function, which returns a status and its value by address.

    The program has no way to raise, so the status is ignored.
    """
    numbers = [I64] * ENTRY_ARGUMENTS
    pointers = [I64.as_pointer(), ir.IntType(8).as_pointer().as_pointer()]
    inner = ir.Function(module, ir.FunctionType(ir.IntType(32), [*pointers, *numbers]), name)
    function = ir.Function(module, ir.FunctionType(I64, numbers), ENTRY_NAME)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    result, error = (builder.alloca(p.pointee) for p in pointers)
    builder.call(inner, [result, error, *function.args])
    builder.ret(builder.load(result))


def kernels_ir(target: Target, inner: str | None = None, names: Collection[str] | None = None) -> str:
    """Return the LLVM IR of a target's kernels, all or some of them, and of the entry around `inner` if given."""
    module = ir.Module("nanochat_kernels")
    module.triple = target.triple or binding.get_process_triple()
    made = [kernel for kernel in KERNELS.values() if kernel.is_in(target) and (names is None or kernel.name in names)]
    functions = [ir.Function(module, function_type(kernel.signature), symbol(kernel.name)) for kernel in made]
    for kernel, function in zip(made, functions, strict=True):
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        value = kernel.emit(Emitter(builder, target.isa.hardware_half), target, *function.args)
        if kernel.signature.startswith("v:"):
            builder.ret_void()
        else:
            builder.ret(value)
    if inner is not None:
        _add_entry(module, inner)
    return str(module)


def _machine(target: Target) -> Any:
    if target.triple is None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
    else:
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
    made = binding.Target.from_triple(target.triple or binding.get_process_triple())
    here = target.triple is None
    return made.create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=OPTIMISATION,
        reloc="default" if here else "pic",
        codemodel="jitdefault" if here else "small",
        jit=here,
    )


def compile_object(
    target: Target, program: tuple[str, str] | None = None, names: Collection[str] | None = None
) -> bytes:
    """Return object code: the kernels alone, all or some (for tests), or a program (IR text, its entry's symbol).

    With a program only its entry stays visible, so that LLVM may inline and drop the rest.
    """
    machine, module = _optimised(target, program, names)
    return bytes(machine.emit_object(module))


def compile_assembly(target: Target, names: Collection[str] | None = None) -> str:
    """Return the assembly of all or some kernels, to look at the instructions chosen for a target."""
    machine, module = _optimised(target, None, names)
    return str(machine.emit_assembly(module))


def _optimised(target: Target, program: tuple[str, str] | None, names: Collection[str] | None) -> tuple[Any, Any]:
    machine = _machine(target)
    module = binding.parse_assembly(kernels_ir(target, program[1] if program else None, names))
    module.data_layout = str(machine.target_data)
    if program is not None:
        linked = binding.parse_assembly(program[0])
        linked.data_layout = str(machine.target_data)
        module.link_in(linked)
        for function in module.functions:
            if not function.is_declaration and function.name != ENTRY_NAME:
                function.linkage = "internal"
    module.verify()
    options = binding.create_pipeline_tuning_options(speed_level=OPTIMISATION)
    builder = binding.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine, module


def load_object(target: Target, code: bytes, names: list[str]) -> dict[str, int]:
    """Load object code into the process and return the addresses of some of its symbols.

    Raises ValueError if one is missing (another version's cache).
    """
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine(target))
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in names}
    if not all(addresses.values()):
        raise ValueError("the object code lacks a function")
    # never disposed of: threads may be in the code when the interpreter shuts down and clears its modules
    engine.detach()
    return addresses
