# The product of matrices that im2col stands on: tiles in shared memory. The twin of gemm_tiled.cu.
#
#   C[split, group, m, n] = bias[group, m, n] + sum over image and k of  A[image, group, m, k] * B[image,
#   group, k, n]
#
# Every split sums over `images` images: one in fprop and dgrad, whose results are of one image each; in wgrad
# as many as the launch says. An array has its layout in its strides, so any of them may be transposed, one
# matrix for all images, or one vector for a whole bias.
#
# Block:   TILE x TILE elements of C. TILE terms at a time, it copies a TILE x TILE tile of A and one of B to
#          shared memory, so that each element loaded from global memory takes part in TILE products instead
#          of one.
# Thread:  one element of C. Lanes run along n, so a warp stores whole rows of TILE.
#
# What it removes: DRAM and L2 traffic, by a factor of TILE. What remains: two loads from shared memory for
# each FMA. TILE is 16: Numba's indices of 64 bits take more than the 64 registers that 1024 threads could
# have.
from numba import cuda


def gemm_tiled(Sum, TILE):
    # One column more than the tile: lanes that write down a column then meet different banks.
    PITCH = TILE + 1

    @cuda.jit
    def kernel(images, a_along_k, b_along_k, a, b, bias, c):
        a_tile = cuda.shared.array((TILE, PITCH), Sum)  # [m][k]
        b_tile = cuda.shared.array((TILE, PITCH), Sum)  # [k][n]
        gemm_m = c.shape[2]
        gemm_n = c.shape[3]
        gemm_k = a.shape[3]
        row = cuda.threadIdx.x // TILE
        lane = cuda.threadIdx.x % TILE

        # ---- What this block computes: neighbouring blocks share a tile of B
        rest = cuda.blockIdx.x
        tiles_m = (gemm_m + TILE - 1) // TILE
        tiles_n = (gemm_n + TILE - 1) // TILE
        m0 = rest % tiles_m * TILE
        rest //= tiles_m
        n0 = rest % tiles_n * TILE
        rest //= tiles_n
        group = rest % c.shape[1]
        split = rest // c.shape[1]

        sum = Sum(0)
        for image in range(split * images, min((split + 1) * images, a.shape[0])):
            image_sum = Sum(0)
            for k0 in range(0, gemm_k, TILE):
                # ---- Load. Lanes run along the lines of the matrix in memory. Zeros, not stale memory, must
                # meet.
                a_m = row if a_along_k else lane
                a_k = lane if a_along_k else row
                value = Sum(0)
                if m0 + a_m < gemm_m and k0 + a_k < gemm_k:
                    value = Sum(a[image, group, m0 + a_m, k0 + a_k])
                a_tile[a_m, a_k] = value
                b_n = row if b_along_k else lane
                b_k = lane if b_along_k else row
                value = Sum(0)
                if n0 + b_n < gemm_n and k0 + b_k < gemm_k:
                    value = Sum(b[image, group, k0 + b_k, n0 + b_n])
                b_tile[b_k, b_n] = value
                cuda.syncthreads()

                # ---- Compute. A sum of its own for each tile keeps the chains of additions short.
                tile_sum = Sum(0)
                for k in range(TILE):
                    tile_sum += a_tile[row, k] * b_tile[k, lane]
                image_sum += tile_sum
                cuda.syncthreads()  # before the next tile overwrites this one
            sum += image_sum

        # ---- Store
        m = m0 + row
        n = n0 + lane
        if m < gemm_m and n < gemm_n:
            if bias.shape[0] > 0:
                sum += Sum(bias[group, m, n])
            c[split, group, m, n] = sum

    return kernel
