"""Object files: how several are kept as one, and how they become functions of this process.

A start with a filled cache needs this and nothing else of the compiler: what emits code is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding

OPTIMISATION = 2
ENTRY_NAME, ENTRY_ARGUMENTS = "nanochat_work", 6


def symbol(name: str) -> str:
    """Return the name by which the program links to a kernel, and its caller finds a function."""
    return f"nanochat_{name}"


def host_machine(cpu: str, features: str) -> Any:
    """Return LLVM's machine for code of this process. cpu, features: LLVM's names, see `targets.compiled_for`."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    made = binding.Target.from_triple(binding.get_process_triple())
    return made.create_target_machine(
        cpu=cpu, features=features, opt=OPTIMISATION, reloc="default", codemodel="jitdefault", jit=True
    )


def joined(objects: Sequence[bytes]) -> bytes:
    """Return several object files as one sequence of bytes, for `parted`."""
    return b"".join(len(code).to_bytes(8, "little") + code for code in objects)


def parted(data: bytes) -> list[bytes]:
    """Return the object files of `joined`."""
    objects, place = [], 0
    while place < len(data):
        start = place + 8
        place = start + int.from_bytes(data[place:start], "little")
        objects.append(data[start:place])
    return objects


def load_objects(cpu: str, features: str, objects: Sequence[bytes], names: Sequence[str]) -> dict[str, int]:
    """Load object files that may call each other into the process and return the addresses of some symbols.

    cpu, features: what they were made for. Raises ValueError if a symbol is missing (another version's cache).
    """
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), host_machine(cpu, features))
    for code in objects:
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in names}
    if not all(addresses.values()):
        raise ValueError("the object code lacks a function")
    # never disposed of: threads may be in the code when the interpreter shuts down and clears its modules
    engine.detach()
    return addresses
