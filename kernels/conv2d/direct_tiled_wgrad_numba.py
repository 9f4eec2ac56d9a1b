# Weight gradient of the direct convolution, tiled. dw is a matrix of filters k x entries (c,r,s), and its sum
# runs over all pixels. The twin of direct_tiled_wgrad.cu.
#
#   dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]
#
#   where h = p*stride_h - pad_top + r*dilation_h, w alike
#
# The matrix is small and the sum is long, so the pixels are split among blocks. A split is a run of tiles of
# pixels, which the problem decides; its partial sums go to a copy of dw of its own, partial[split, k, c, r,
# s], and sum_splits_numba.py adds the copies in order.
#
# Layouts: both; an array has its layout in its strides.
# Block:   plan.filters x plan.entries of dw in one group, over the tiles of one split. For each tile it
# stages
#          dy, and a patch of x in which every entry (c,r,s) finds its pixel at a fixed distance.
# Thread:  TM filters  x  TN entries. The lanes of a warp have the same filters and neighbouring entries.
#
#   staged   dy        [image][row][column][filter]
#            patch     [channel][image][row][column]    from plan.dy_size on
from numba import cuda, int32
from pyconv.kernels.conv2d.direct_tiled_stage_numba import column_of, stage_patch


def direct_tiled_wgrad(Sum, TM, TN, THREADS, SHARED):
    @cuda.jit
    def kernel(problem, plan, x, dy, partial):
        staged = cuda.shared.array(SHARED, Sum)
        sums = cuda.local.array((TM, TN), Sum)
        own_dy = cuda.local.array(TM, Sum)
        own_x = cuda.local.array(TN, Sum)
        places = cuda.local.array(TN, int32)
        thread = cuda.threadIdx.x
        taps = problem.r * problem.s

        # ---- What this block computes: neighbouring blocks read the same pixels
        rest = cuda.blockIdx.x
        first_filter = rest % plan.filter_blocks * plan.filters
        rest //= plan.filter_blocks
        first_entry = rest % plan.entry_blocks * plan.entries
        rest //= plan.entry_blocks
        group = rest % problem.groups
        split = rest // problem.groups
        first_channel = first_entry // taps
        channels = min(plan.channels, plan.group_c - first_channel)
        tiles = plan.image_tiles * plan.rows_tiles * plan.columns_tiles
        tile = split * plan.split_tiles
        end_tile = min(tile + plan.split_tiles, tiles)

        # ---- What this thread computes of it, and where its entries find the first pixel of a tile
        lanes = THREADS // (plan.filters // TM)
        own_filter = thread // lanes * TM
        lane = thread % lanes
        for j in range(TN):
            entry = first_entry + lane + j * lanes
            channel = entry // taps - first_channel
            row = entry % taps // problem.s * plan.rows_tap_step
            column = column_of(plan, entry % problem.s * plan.columns_tap_step)
            place = channel * plan.patch_channel_pitch + row * plan.patch_row_pitch + column
            places[j] = plan.dy_size + place if channel < channels else plan.dy_size  # any will do

        is_first = True
        while tile < end_tile:
            end = min(tile + plan.chain_tiles, end_tile)
            for i in range(TM):
                for j in range(TN):
                    sums[i, j] = Sum(0)
            while tile < end:
                q = tile % plan.columns_tiles * plan.columns_tile
                p = tile // plan.columns_tiles % plan.rows_tiles * plan.rows_tile
                image = tile // plan.columns_tiles // plan.rows_tiles * plan.patch_images
                images = min(plan.patch_images, problem.n - image)
                rows = min(plan.rows_tile, problem.p - p)
                columns = min(plan.columns_tile, problem.q - q)
                cuda.syncthreads()  # nobody needs the tile before any more

                # ---- Load. Eight neighbouring threads take neighbouring filters.
                for pixel in range(thread // 8, images * plan.rows_tile * plan.columns_tile, THREADS // 8):
                    column = pixel % plan.columns_tile
                    row = pixel // plan.columns_tile % plan.rows_tile
                    if column < columns and row < rows:  # nobody reads the others
                        n = image + pixel // plan.columns_tile // plan.rows_tile
                        for k in range(thread % 8, plan.filters, 8):
                            value = Sum(0)
                            if first_filter + k < plan.group_k:
                                filter = group * plan.group_k + first_filter + k
                                value = Sum(dy[n, filter, p + row, q + column])
                            staged[pixel * plan.dy_pitch + k] = value
                h = p * problem.stride_h - problem.pad_top
                w = q * problem.stride_w - problem.pad_left
                channel = group * plan.group_c + first_channel
                stage_patch(
                    staged, plan.dy_size, plan, x, image, channel, h, w, channels, plan.lanes, Sum(0), THREADS
                )
                cuda.syncthreads()

                # ---- Compute
                for line in range(images * rows):
                    image_at = line // rows
                    row = line % rows
                    filters = (
                        image_at * plan.rows_tile + row
                    ) * plan.columns_tile * plan.dy_pitch + own_filter
                    pixel = image_at * plan.patch_image_pitch + row * plan.rows_in_step * plan.patch_row_pitch
                    for _ in range(columns):
                        for i in range(TM):
                            own_dy[i] = staged[filters + i]
                        for j in range(TN):
                            own_x[j] = staged[pixel + places[j]]
                        for i in range(TM):
                            for j in range(TN):
                                sums[i, j] += own_dy[i] * own_x[j]
                        filters += plan.dy_pitch
                        pixel += 1  # neighbouring outputs read neighbouring words, whatever the stride
                tile += 1

            # ---- Store: partial = sums, or partial += sums where those of earlier chains are there already
            for j in range(TN):
                entry = first_entry + lane + j * lanes
                c = entry // taps
                r = entry % taps // problem.s
                s = entry % problem.s
                if lane + j * lanes < plan.entries and entry < plan.group_entries:
                    for i in range(TM):
                        k = first_filter + own_filter + i
                        if k < plan.group_k:
                            k += group * plan.group_k
                            before = Sum(0)
                            if not is_first:
                                before = partial[split, k, c, r, s]
                            partial[split, k, c, r, s] = before + sums[i, j]
            is_first = False

    return kernel
