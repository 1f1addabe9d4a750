/* dequantize.cu - CUDA side of dequantize. Contract: fp8flow_ops.h. CPU side: dequantize.c.
 *
 * A block of threads takes 128 rows x 64 columns of codes through shared memory (code_tile.cuh), whatever the layout;
 * a warp then writes 16 rows, one element per lane at a time. Traffic: codes and values once.
 */
#include "ops/code_tile.cuh"
#include "ops/launch.cuh"

/* NaN keeps its sign, as on the CPU; a multiplication here would replace it. */
__device__ static float value_of(uint8_t code, fp8flow_dtype dtype, float scale)
{
    float value = f8_decode(code, dtype);
    return value != value ? value : value * scale;
}

__global__ static void __launch_bounds__(F8_CODE_THREADS)
    dequantize_kernel(fp8flow_tensor x, fp8flow_tensor y, f8_grouping grouping)
{
    __shared__ f8_code_memory memory;
    __shared__ uint32_t valid[F8_CODE_THREADS / F8_WARP];
    f8_code_place p = f8_code_place_of(x, grouping, blockIdx.x);
    if (p.rows.end <= p.rows.first) return;
    f8_code_load(x, p, memory, valid);
    for (int r = 0; r < F8_STATE_ROWS; r++) {
        int group = __shfl_sync(F8_ALL_LANES, p.states.group, r), row = p.row + r;
        if (!(p.states.written >> r & 1)) continue;
        for (int col = f8_lane(); col < F8_CODE_COLS && p.col + col < y.cols; col += F8_WARP) {
            float value = 0.0f;
            if (p.states.valid >> r & 1)
                value = value_of(memory.code[row][col], x.dtype, f8_code_scale(x, p, row, col, group));
            int64_t index = (int64_t)(p.rows.first + row) * y.stride + p.col + col;
            if (y.dtype == FP8FLOW_F32) ((float *)y.data)[index] = value;
            else ((uint16_t *)y.data)[index] = f8_bf16_encode(value);
        }
    }
}

extern "C" fp8flow_status f8_cuda_dequantize(fp8flow_context *c, const fp8flow_dequantize_args *a)
{
    int64_t tiles = f8_code_tiles(a->x);
    if (tiles == 0 || (a->groups && a->groups->count == 0)) return FP8FLOW_OK;
    dequantize_kernel<<<f8_grid(tiles, 1), F8_CODE_THREADS, 0, f8_stream(c)>>>(*a->x, *a->y,
                                                                              f8_grouping_of(a->x, a->groups));
    return f8_launched("dequantize");
}
