"""What a compiled kernel must fulfil. A fault names kernel, architecture, the expected and the found."""

from __future__ import annotations

import re

from pyconv.gates.architectures import Architecture
from pyconv.gates.cubin import Usage
from pyconv.gates.instantiations import Instantiation

_ATOMIC = re.compile(r"(ATOM|RED)[GS]?\.")
# A sum of floats by compare-and-swap is as dependent on timing as one by an atomic addition.
_FLOAT_OR_SWAP = re.compile(r"\.(B?F(16|32|64)|CAST?)\b")


def faults(instantiation: Instantiation, usage: Usage, architecture: Architecture) -> list[str]:
    """What is wrong with one compiled instantiation; empty if nothing."""
    found = [
        *_spills(usage),
        *_float_atomics(usage),
        *_missing(instantiation, usage),
        *_parameters(instantiation, usage),
    ]
    for threads, dynamic_shared in sorted(instantiation.launches):
        found += _launch(usage, architecture, threads, dynamic_shared)
    name = f"{instantiation.source}: {instantiation.kernel} on {architecture.name}"
    return [f"{name}: {fault} (launched for {instantiation.problem})" for fault in found]


def _spills(usage: Usage) -> list[str]:
    loads, stores = usage.count("LDL"), usage.count("STL")
    if not (usage.stack or loads or stores):
        return []
    return [
        f"expected no spills, found {usage.stack} bytes of stack, {loads} LDL, {stores} STL; it has "
        f"{usage.registers} registers of {usage.register_limit} that __launch_bounds__ allows"
    ]


def _float_atomics(usage: Usage) -> list[str]:
    wrong = [opcode for opcode in usage.opcodes if _ATOMIC.match(opcode) and _FLOAT_OR_SWAP.search(opcode)]
    return [f"expected no float atomics, found {', '.join(sorted(wrong))}"] if wrong else []


def _missing(instantiation: Instantiation, usage: Usage) -> list[str]:
    found = []
    for promised in sorted(instantiation.sass):
        if not usage.count(promised):
            base = promised.split(".")[0]
            like = [
                f"{opcode} x{number}" for opcode, number in usage.opcodes.items() if opcode.startswith(base)
            ]
            found.append(f"expected {promised}, found {', '.join(sorted(like)) or f'no {base}'}")
    return found


def _parameters(instantiation: Instantiation, usage: Usage) -> list[str]:
    if usage.parameters == instantiation.parameters:
        return []
    return [
        f"expected parameters of {instantiation.parameters} bytes, as its step passes, "
        f"found {usage.parameters} in the kernel"
    ]


def _launch(usage: Usage, architecture: Architecture, threads: int, dynamic_shared: int) -> list[str]:
    found = []
    if usage.registers > usage.register_limit:
        found.append(f"expected at most {usage.register_limit} registers, found {usage.registers}")
    if threads > usage.most_threads:
        found.append(f"expected a launch of at most {usage.most_threads} threads, found {threads}")
    shared = usage.shared + dynamic_shared
    if shared > architecture.shared_of_block:
        found.append(
            f"expected at most {architecture.shared_of_block} bytes of shared memory, found {shared}"
        )
    elif not architecture.blocks_of(threads, usage.registers, shared):
        found.append(f"expected a block to fit, found {threads} threads of {usage.registers} registers")
    return found
