"""The architectures that kernels are compiled for, and how many blocks of a kernel one multiprocessor holds.

The limits are those of the CUDA Programming Guide, "Technical Specifications per Compute Capability"; the
granularities, and the shared memory that the system takes of every block, those of ``cuda_occupancy.h`` in
the CUDA 13.0 toolkit.
"""

from __future__ import annotations

from dataclasses import dataclass

WARP_SIZE = 32
REGISTERS = 65536  # of a multiprocessor, and the most that one block may have
MOST_THREADS_OF_BLOCK = 1024

_REGISTER_UNIT = 256  # registers are given to a warp in this unit
_QUARTERS = 4  # of a multiprocessor, each with its own warps and a quarter of the registers
_SHARED_UNIT = 128
_SHARED_OF_SYSTEM = 1024  # of every block


@dataclass(frozen=True)
class Architecture:
    """What one multiprocessor has; ``shared`` in bytes, of which a block may have ``shared_of_block``."""

    name: str
    example: str
    threads: int
    blocks: int
    shared: int
    shared_of_block: int

    @property
    def number(self) -> int:
        """``90`` for ``sm_90a``."""
        return int("".join(filter(str.isdigit, self.name)))

    def blocks_of(self, threads: int, registers: int, shared: int) -> int:
        """Blocks of one kernel that a multiprocessor holds at once; 0 if it cannot hold one.

        Args:
            threads: Of a block.
            registers: Of a thread.
            shared: Bytes of a block, static and dynamic, without what the system takes.
        """
        if threads > MOST_THREADS_OF_BLOCK or shared > self.shared_of_block:
            return 0
        warps = _round_up(threads, WARP_SIZE) // WARP_SIZE
        registers_of_warp = _round_up(max(registers, 1) * WARP_SIZE, _REGISTER_UNIT)
        if _round_up(warps, _QUARTERS) * registers_of_warp > REGISTERS:
            return 0
        warps_by_registers = REGISTERS // _QUARTERS // registers_of_warp * _QUARTERS
        shared_of_block = _round_up(shared + _SHARED_OF_SYSTEM, _SHARED_UNIT)
        return min(
            self.blocks,
            self.threads // WARP_SIZE // warps,
            warps_by_registers // warps,
            self.shared // shared_of_block,
        )

    def occupancy(self, threads: int, registers: int, shared: int) -> float:
        """Resident warps over the most that are possible, for :meth:`blocks_of` blocks."""
        warps = _round_up(threads, WARP_SIZE) // WARP_SIZE
        return self.blocks_of(threads, registers, shared) * warps / (self.threads // WARP_SIZE)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


_KB = 1024
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("sm_80", "A100", 2048, 32, 164 * _KB, 163 * _KB),
        Architecture("sm_86", "RTX 3090", 1536, 16, 100 * _KB, 99 * _KB),
        Architecture("sm_89", "RTX 4090, L4", 1536, 24, 100 * _KB, 99 * _KB),
        Architecture("sm_90a", "H100, H200", 2048, 32, 228 * _KB, 227 * _KB),
        Architecture("sm_100", "B200", 2048, 32, 228 * _KB, 227 * _KB),
    )
}
