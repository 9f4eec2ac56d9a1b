"""What a compiled CUDA kernel is made of, checked on a machine without a GPU.

Every instantiation that the CUDA lines of the table launch for the problems of :mod:`pyconv.gates.problems`
is compiled as the backend compiles it, for every architecture of :mod:`pyconv.gates.architectures`. Its cubin
is taken apart and held to rules (:mod:`pyconv.gates.rules`): no spills, no sums by float atomics, the
registers, threads, shared memory and parameters of its launches, and the instructions that its step promises
(:attr:`pyconv.backends.program.Step.sass`). ``kernels/RESOURCES.md`` is the page of what was found.

::

    python -m pyconv.gates                                 check all, on every architecture
    python -m pyconv.gates --only gemm --arch sm_80        check some
    python -m pyconv.gates --write                         check all and write kernels/RESOURCES.md
    python -m pyconv.gates --sass 'gemm<Half' --arch sm_90a    print machine code

Needs NVRTC, cuobjdump and nvdisasm (on PyPI nvidia-cuda-nvrtc, nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm),
but neither a GPU nor a driver.
"""
