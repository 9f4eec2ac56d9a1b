# Bias gradient: db[k] = sum over n,p,q of dy[n,k,p,q]. The twin of bgrad.cu.
#
# Two steps, because one block per filter would be too few and adding atomically has no fixed order:
#   bgrad_partial   each block adds up a chunk of n,p,q               -> partial[k, chunk] (workspace)
#   bgrad_total     each warp adds up the partial sums of one filter  -> db[k]
# The chunks, and so the order of every sum, come from the problem.
#
# Layouts: both; dy comes as dy[n, k, pixel]. `lanes` neighbouring threads take neighbouring filters: 1 in
# nchw,
#          where a warp then reads neighbouring pixels, up to 32 in nhwc.
# Block:   `lanes` filters, chunk_rows rows of n,p,q.
# Thread:  one filter, every (THREADS / lanes)-th row.
from numba import cuda

WARP = 32
WHOLE_WARP = 0xFFFFFFFF


def bgrad_partial(Sum, THREADS):
    WARPS = THREADS // WARP

    @cuda.jit
    def kernel(problem, chunks, chunk_rows, lanes, dy, partial):
        of_warps = cuda.shared.array((WARPS, WARP), Sum)
        thread = cuda.threadIdx.x
        lane = thread % lanes
        chunk = cuda.blockIdx.x % chunks
        k = cuda.blockIdx.x // chunks * lanes + lane
        pixels = problem.p * problem.q
        begin = chunk * chunk_rows
        end = min(begin + chunk_rows, problem.n * pixels)

        sum = Sum(0)
        if k < problem.k:
            for row in range(begin + thread // lanes, end, THREADS // lanes):
                sum += Sum(dy[row // pixels, k, row % pixels])

        # Lanes with the same filter are `lanes` apart, within a warp and then from warp to warp.
        distance = WARP // 2
        while distance >= lanes:
            sum += cuda.shfl_xor_sync(WHOLE_WARP, sum, distance)
            distance //= 2
        of_warps[thread // WARP, thread % WARP] = sum
        cuda.syncthreads()
        if thread < lanes and k < problem.k:
            for warp in range(1, WARPS):
                sum += of_warps[warp, lane]
            partial[k, chunk] = sum

    return kernel


def bgrad_total(Sum, THREADS):
    WARPS = THREADS // WARP

    @cuda.jit
    def kernel(problem, chunks, partial, db):
        k = cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
        lane = cuda.threadIdx.x % WARP
        sum = Sum(0)
        if k < problem.k:
            for chunk in range(lane, chunks, WARP):
                sum += partial[k, chunk]
        distance = WARP // 2
        while distance > 0:  # all lanes take part, those beyond the last filter too
            sum += cuda.shfl_xor_sync(WHOLE_WARP, sum, distance)
            distance //= 2
        if lane == 0 and k < problem.k:
            db[k] = sum

    return kernel
