# Direct convolution, tiled: a block stages a patch of the input and its filters in shared memory, once for
# all the products that need them, and every thread keeps a tile of sums in registers. fprop and dgrad are one
# gather (gather.cuh), so they are one kernel; "input" is x or dy, "out" y or dx. The twin of direct_tiled.cu.
#
#   out[n, out channel, row, column] = bias + sum over in channels and taps of  in[n, in channel, ...] *
#   w[...]
#
# Layouts: both; an array has its layout in its strides. filter[group, out channel, in channel, r, s] is a
# view of
#          w, so that the filters of dgrad are read as those of fprop.
# Block:   plan.patch_images x plan.rows_tile x plan.columns_tile pixels of one class  x  plan.filters out
#          channels of one group, over chunks of plan.channels in channels.
# Warp:    32 neighbouring pixels of a row (or of several short rows)  x  TN out channels.
# Thread:  TM pixels, one below the other,  x  TN out channels.
#
# For each in channel and tap, a warp reads TM times 32 neighbouring words of the patch and TN words of the
# filters, the same for all lanes: 4 + 8 accesses to shared memory for 32 FMAs.
#
#   staged   filters   [in channel][tap][out channel]
#            patch     [in channel][image][row][column]    from plan.filters_size on
#
# Numba gives a kernel 48 KB of shared memory whose size it knows, so filters and patch share one array of
# that size. TM x TN sums in a local array become registers, because every index of it is known when compiled.
from numba import cuda
from pyconv.kernels.conv2d.direct_tiled_stage_numba import column_of, dgrad_axis, fprop_axis, stage_patch


def direct_tiled(Sum, TM, TN, THREADS, SHARED):
    @cuda.jit
    def kernel(problem, plan, input, filter, bias, out):
        staged = cuda.shared.array(SHARED, Sum)
        sums = cuda.local.array((TM, TN), Sum)
        own_pixels = cuda.local.array(TM, Sum)
        own_filters = cuda.local.array(TN, Sum)
        thread = cuda.threadIdx.x

        # ---- What this block computes: neighbouring blocks share a patch
        rest = cuda.blockIdx.x
        first_out = rest % plan.filter_blocks * plan.filters
        rest //= plan.filter_blocks
        first_column = rest % plan.columns_tiles * plan.columns_tile
        rest //= plan.columns_tiles
        first_row = rest % plan.rows_tiles * plan.rows_tile
        rest //= plan.rows_tiles
        first_image = rest % plan.image_tiles * plan.patch_images
        rest //= plan.image_tiles
        column_class = rest % plan.columns_classes
        row_class = rest // plan.columns_classes % plan.rows_classes
        if plan.pass_ == 0:
            rows = fprop_axis(out.shape[2], problem.r, problem.pad_top)
            columns = fprop_axis(out.shape[3], problem.s, problem.pad_left)
        else:
            stride_h, dilation_h = problem.stride_h, problem.dilation_h
            stride_w, dilation_w = problem.stride_w, problem.dilation_w
            rows = dgrad_axis(
                out.shape[2], problem.r, problem.pad_top, stride_h, dilation_h, plan.rows_period, row_class
            )
            columns = dgrad_axis(
                out.shape[3], problem.s, problem.pad_left, stride_w, dilation_w, plan.columns_period,
                column_class,
            )  # fmt: skip
        group = rest // (plan.columns_classes * plan.rows_classes)
        row_origin, row_step, row_count, row_taps, r_origin, r_step, row_input = rows
        column_origin, column_step, column_count, column_taps, s_origin, s_step, column_input = columns
        patch_row = row_input + first_row * plan.rows_in_step * plan.patch_row_unit
        patch_column = column_input + first_column * plan.columns_in_step * plan.patch_column_unit
        taps = row_taps * column_taps
        in_channels = plan.in_channels if taps > 0 else 0

        # ---- What this thread computes of it
        pixel_lanes = THREADS // (plan.filters // TN)
        run = thread % pixel_lanes // plan.columns_tile
        runs = plan.rows_tile // TM
        is_idle = run // runs >= plan.patch_images  # where rows are short, the last lanes have no pixel
        own_image = 0 if is_idle else run // runs
        own_row = run % runs * TM
        own_column = thread % pixel_lanes % plan.columns_tile
        own_out = thread // pixel_lanes * TN
        own_patch = plan.filters_size + own_image * plan.patch_image_pitch
        pitch = TM * pixel_lanes + 1  # of the staged tile of sums: out channels then lie in different banks
        own_patch += own_row * plan.rows_in_step * plan.patch_row_pitch + own_column

        first_in = 0
        while True:  # once, if the sum is empty
            is_first = first_in == 0
            end_in = min(first_in + plan.chain, in_channels)
            for i in range(TM):
                for j in range(TN):
                    sums[i, j] = Sum(0)
            while first_in < end_in:
                channels = min(plan.channels, end_in - first_in)
                cuda.syncthreads()  # nobody needs the chunk before any more

                # ---- Load
                channel = group * plan.in_channels + first_in
                stage_patch(
                    staged, plan.filters_size, plan, input, first_image, channel, patch_row, patch_column,
                    channels, plan.lanes, Sum(0), THREADS,
                )  # fmt: skip
                for i in range(thread // 8, channels * taps, THREADS // 8):
                    c = i // taps
                    r = r_origin + i % taps // column_taps * r_step
                    s = s_origin + i % taps % column_taps * s_step
                    for k in range(thread % 8, plan.filters, 8):
                        value = Sum(0)
                        if first_out + k < plan.out_channels:
                            value = Sum(filter[group, first_out + k, first_in + c, r, s])
                        staged[i * plan.filter_pitch + k] = value
                cuda.syncthreads()

                # ---- Compute
                for tap in range(taps):
                    row = tap // column_taps * plan.rows_tap_step
                    column = tap % column_taps * plan.columns_tap_step
                    pixel = own_patch + row * plan.patch_row_pitch + column_of(plan, column)
                    for c in range(channels):
                        for i in range(TM):
                            own_pixels[i] = staged[pixel + i * plan.rows_in_step * plan.patch_row_pitch]
                        for j in range(TN):
                            own_filters[j] = staged[(c * taps + tap) * plan.filter_pitch + own_out + j]
                        for i in range(TM):
                            for j in range(TN):
                                sums[i, j] += own_pixels[i] * own_filters[j]
                        pixel += plan.patch_channel_pitch
                first_in += plan.channels

            # ---- Store, by way of shared memory: neighbouring threads then write neighbouring elements of
            # out
            cuda.syncthreads()  # nobody needs the last chunk any more
            for i in range(TM):
                for j in range(TN):
                    staged[(own_out + j) * pitch + i * pixel_lanes + thread % pixel_lanes] = sums[i, j]
            cuda.syncthreads()
            for element in range(thread, plan.filters * TM * pixel_lanes, THREADS):
                if plan.lanes > 1:  # nhwc
                    pixel = element // plan.filters
                    k = element % plan.filters
                else:
                    pixel = element % (TM * pixel_lanes)
                    k = element // (TM * pixel_lanes)
                sum = staged[k * pitch + pixel]
                run = pixel % pixel_lanes // plan.columns_tile
                image = first_image + run // runs
                row = first_row + run % runs * TM + pixel // pixel_lanes
                column = first_column + pixel % pixel_lanes % plan.columns_tile
                k += first_out
                is_inside = run // runs < plan.patch_images and image < out.shape[0]
                if is_inside and row < row_count and column < column_count and k < plan.out_channels:
                    k += group * plan.out_channels
                    h = row_origin + row * row_step
                    w = column_origin + column * column_step
                    if not is_first:  # a part of the sum is there already
                        sum += Sum(out[image, k, h, w])
                    elif bias.shape[0] > 0:
                        sum += Sum(bias[k])
                    out[image, k, h, w] = sum
            if first_in >= in_channels:
                break

    return kernel
