# The last step of a product whose sum is split: the partial sums of every element, added up. The twin of
# sum_splits.cu.
#
#   out[i] = sum over split of partial[split, i]
#
# Thread: one element, from the first split to the last, so the sum has one order however the blocks were
# timed.
from numba import cuda


def sum_splits(Sum):
    @cuda.jit
    def kernel(partial, out):
        i = cuda.grid(1)
        if i >= out.shape[0]:
            return
        sum = Sum(0)
        for split in range(partial.shape[0]):
            sum += partial[split, i]
        out[i] = sum

    return kernel
