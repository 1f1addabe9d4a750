/* adamw.cu - CUDA side of adamw. Contract: fp8flow_ops.h. CPU side: adamw.c.
 *
 * adamw without quantised forms: a thread updates pieces of four neighbouring parameters (16 bytes of each array), or
 * one parameter where an array is not aligned and behind the last piece. With forms: a block of threads updates a
 * tile of 128 x 128, a warp eight or more neighbouring rows of it, a lane four columns; the BF16 weights stay in
 * registers until the tile's scale is known. One function does the arithmetic, so that bits agree.
 * Traffic per parameter: 16 bytes in, 12 out, 2 for the weight, 1 for each form. Every thread reads the scale of the
 * gradient itself, mostly from L1; where it is NaN all threads leave before they write.
 */
#include "ops/block.cuh"
#include "ops/codes.cuh"
#include "ops/launch.cuh"
#include "ops/warp.cuh"

/* ---- One step of one parameter ---- */

struct adamw_arrays {
    float *master, *m, *v;
    const float *grad;
    uint16_t *weight; /* may be NULL */
};

struct adamw_factors {
    const float *grad_scale; /* NULL: 1 */
    float beta1, one_minus_beta1, beta2, one_minus_beta2, correction1, correction2, eps, decay, lr;
};

/* NaN: the step is skipped. */
__device__ static inline float grad_scale_of(const adamw_factors &f)
{
    return f.grad_scale ? __ldg(f.grad_scale) : 1.0f;
}

/* g: the scaled gradient. */
__device__ static inline void step(const adamw_factors &f, float g, float &master, float &m, float &v)
{
    m = fmaf(f.beta1, m, f.one_minus_beta1 * g);
    v = fmaf(f.beta2, v, f.one_minus_beta2 * (g * g));
    float update = m / f.correction1 / (sqrtf(v / f.correction2) + f.eps);
    master = fmaf(-f.lr, fmaf(f.decay, master, update), master);
}

/* ---- Four neighbouring parameters ---- */

struct adamw_quad {
    float4 master, m, v, grad;
};

template <bool wide> __device__ static inline void store4(float *to, float4 x, int valid)
{
    if (wide) {
        if (valid > 0) __stcs((float4 *)to, x);
        return;
    }
    if (valid > 0) to[0] = x.x;
    if (valid > 1) to[1] = x.y;
    if (valid > 2) to[2] = x.z;
    if (valid > 3) to[3] = x.w;
}

template <bool wide> __device__ static inline void store_weights(uint16_t *to, uint2 x, int valid)
{
    if (wide) {
        if (valid > 0) __stcs((uint2 *)to, x);
        return;
    }
    if (valid > 0) to[0] = (uint16_t)x.x;
    if (valid > 1) to[1] = (uint16_t)(x.x >> 16);
    if (valid > 2) to[2] = (uint16_t)x.y;
    if (valid > 3) to[3] = (uint16_t)(x.y >> 16);
}

template <bool wide> __device__ static inline adamw_quad load_quad(const adamw_arrays &p, int64_t at, int valid)
{
    return { f8_load4<wide>(p.master + at, valid), f8_load4<wide>(p.m + at, valid), f8_load4<wide>(p.v + at, valid),
             f8_load4<wide>(p.grad + at, valid) };
}

/* Step and store; returns the new BF16 weights. A NaN that arithmetic makes is 0x7FFFFFFF here, and the fast
 * conversion gives it the bits that f8_bf16_encode gives. */
template <bool wide>
__device__ static inline uint2 update_quad(const adamw_arrays &p, const adamw_factors &f, float grad_scale,
                                           adamw_quad x, int64_t at, int valid)
{
    step(f, x.grad.x * grad_scale, x.master.x, x.m.x, x.v.x);
    step(f, x.grad.y * grad_scale, x.master.y, x.m.y, x.v.y);
    step(f, x.grad.z * grad_scale, x.master.z, x.m.z, x.v.z);
    step(f, x.grad.w * grad_scale, x.master.w, x.m.w, x.v.w);
    store4<wide>(p.master + at, x.master, valid);
    store4<wide>(p.m + at, x.m, valid);
    store4<wide>(p.v + at, x.v, valid);
    uint2 weights = make_uint2(f8_bf16_pair_fast(x.master.x, x.master.y), f8_bf16_pair_fast(x.master.z, x.master.w));
    if (p.weight) store_weights<wide>(p.weight + at, weights, valid);
    return weights;
}

/* ---- Without forms ---- */

enum { FLAT_THREADS = 256, FLAT_PIECES = 1, ADAMW_QUAD = 4 };

template <int PIECES>
__global__ __launch_bounds__(FLAT_THREADS) static void adamw_flat_kernel(adamw_arrays p, adamw_factors f,
                                                                         int64_t pieces)
{
    int64_t first = (int64_t)blockIdx.x * (FLAT_THREADS * PIECES) + threadIdx.x;
    adamw_quad x[PIECES];
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int64_t piece = first + i * FLAT_THREADS;
        x[i] = load_quad<true>(p, piece * ADAMW_QUAD, piece < pieces ? ADAMW_QUAD : 0);
    }
    float grad_scale = grad_scale_of(f);
    if (isnan(grad_scale)) return;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int64_t piece = first + i * FLAT_THREADS;
        update_quad<true>(p, f, grad_scale, x[i], piece * ADAMW_QUAD, piece < pieces ? ADAMW_QUAD : 0);
    }
}

/* Parameters from `first` on, one per thread. */
__global__ static void adamw_element_kernel(adamw_arrays p, adamw_factors f, int64_t first, int64_t count)
{
    int64_t i = first + (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    float grad_scale = grad_scale_of(f);
    if (i >= count || isnan(grad_scale)) return;
    float master = p.master[i], m = p.m[i], v = p.v[i];
    step(f, p.grad[i] * grad_scale, master, m, v);
    p.master[i] = master;
    p.m[i] = m;
    p.v[i] = v;
    if (p.weight) p.weight[i] = (uint16_t)f8_bf16_pair_fast(master, 0.0f);
}

/* ---- With forms ---- */

/* The forms and their common shape. data NULL: not wanted. */
struct adamw_forms {
    f8_grouping grouping;
    unsigned col_blocks;
    int64_t cols, line; /* line: elements from one line of the column form to the next */
    uint8_t *rows, *columns, *rows_scale, *columns_scale;
};

/* Where a tile and this lane's four columns of it lie. */
struct adamw_place {
    f8_device_span span;
    int64_t col;
    int valid; /* of the lane's columns */
};

enum { TILE_WARPS = 16, TILE_BATCH = 2, TILES_PER_SM = 1, TILE_LINE = F8_BLOCK / 16, ROW_PIECE = 8 };

/* The bytes of column j of four rows of four codes, in words[j]. */
__device__ static inline uint4 transpose_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    uint32_t ab2 = __byte_perm(a, b, 0x7362), cd2 = __byte_perm(c, d, 0x7362);
    return make_uint4(__byte_perm(ab, cd, 0x5410), __byte_perm(ab, cd, 0x7632), __byte_perm(ab2, cd2, 0x5410),
                      __byte_perm(ab2, cd2, 0x7632));
}

__device__ static inline uint32_t finite_max(uint2 w)
{
    return max(max(f8_finite_magnitude(f8_bf16_low(w.x)), f8_finite_magnitude(f8_bf16_high(w.x))),
               max(f8_finite_magnitude(f8_bf16_low(w.y)), f8_finite_magnitude(f8_bf16_high(w.y))));
}

/* Step of ROWS rows from `first` on, BATCH of them in flight; the largest finite weight. What lies outside the matrix
 * counts as parameters that are 0: their new weights are 0 or NaN, and never raise the maximum. */
template <bool wide, int ROWS, int BATCH>
__device__ static inline uint32_t update_rows(const adamw_arrays &p, const adamw_factors &f, const adamw_forms &forms,
                                              const adamw_place &place, float grad_scale, int first,
                                              uint2 (&weights)[ROWS])
{
    int64_t at = (place.span.row + first) * forms.cols + place.col;
    uint32_t amax = 0;
#pragma unroll
    for (int begin = 0; begin < ROWS; begin += BATCH) {
        adamw_quad x[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            x[i] = load_quad<wide>(p, at + (begin + i) * forms.cols,
                                   first + begin + i < place.span.rows ? place.valid : 0);
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int valid = first + begin + i < place.span.rows ? place.valid : 0;
            weights[begin + i] = update_quad<wide>(p, f, grad_scale, x[i], at + (begin + i) * forms.cols, valid);
            amax = max(amax, finite_max(weights[begin + i]));
        }
    }
    return amax;
}

/* Scale byte of the tile, from every thread's maximum. */
template <fp8flow_dtype dtype, int WARPS>
__device__ static inline uint8_t tile_scale(const adamw_forms &forms, uint32_t amax)
{
    __shared__ uint32_t warp_amax[WARPS];
    amax = f8_warp_max(amax);
    if (f8_lane() == 0) warp_amax[threadIdx.x / F8_WARP] = amax;
    __syncthreads();
    uint8_t byte = f8_scale_byte(f8_warp_max(f8_lane() < WARPS ? warp_amax[f8_lane()] : 0), dtype);
    if (threadIdx.x == 0 && forms.rows) forms.rows_scale[blockIdx.x] = byte;
    if (threadIdx.x == 0 && forms.columns) forms.columns_scale[blockIdx.x] = byte;
    return byte;
}

template <bool wide> __device__ static inline void store_codes(uint8_t *to, uint32_t codes, int valid)
{
    if (wide) {
        if (valid > 0) __stcs((uint32_t *)to, codes);
        return;
    }
    if (valid > 0) to[0] = (uint8_t)codes;
    if (valid > 1) to[1] = (uint8_t)(codes >> 8);
    if (valid > 2) to[2] = (uint8_t)(codes >> 16);
    if (valid > 3) to[3] = (uint8_t)(codes >> 24);
}

/* Up to 16 codes of one line of the column form. */
template <bool wide> __device__ static inline void store_line(uint8_t *to, uint4 codes, int valid)
{
    if (wide) {
        if (valid > 0) f8_store16(to, codes);
        return;
    }
    store_codes<false>(to, codes.x, valid);
    store_codes<false>(to + 4, codes.y, valid - 4);
    store_codes<false>(to + 8, codes.z, valid - 8);
    store_codes<false>(to + 12, codes.w, valid - 12);
}

/* Eight rows of the lane's four columns go to shared memory as eight codes of each column. Columns lie 128 bytes
 * apart, in the same bank: the place of the eight codes in its line is XORed with column / 4, which differs between
 * the 16 lanes that write at once. */
__device__ static inline void stage_columns(uint2 *tile, int piece, const uint32_t (&codes)[ROW_PIECE])
{
    uint4 low = transpose_bytes(codes[0], codes[1], codes[2], codes[3]);
    uint4 high = transpose_bytes(codes[4], codes[5], codes[6], codes[7]);
    uint2 *to = tile + f8_lane() * 4 * (F8_BLOCK / ROW_PIECE) + (piece ^ (f8_lane() & 15));
    to[0] = make_uint2(low.x, high.x);
    to[F8_BLOCK / ROW_PIECE] = make_uint2(low.y, high.y);
    to[2 * (F8_BLOCK / ROW_PIECE)] = make_uint2(low.z, high.z);
    to[3 * (F8_BLOCK / ROW_PIECE)] = make_uint2(low.w, high.w);
}

/* The staged tile to the column form: eight neighbouring lanes write the 128 codes of one column. */
template <bool wide, int WARPS>
__device__ static inline void write_columns(const adamw_forms &forms, f8_device_span span, int64_t first_col,
                                            const uint4 *tile)
{
    int64_t row = span.row - (int64_t)span.group * forms.grouping.group_rows;
#pragma unroll
    for (int i = 0; i < F8_BLOCK * TILE_LINE / (WARPS * F8_WARP); i++) {
        int index = i * WARPS * F8_WARP + threadIdx.x;
        int col = index / TILE_LINE, piece = index % TILE_LINE, swizzle = col / 4 % 16;
        uint4 codes = tile[col * TILE_LINE + (piece ^ (swizzle / 2))];
        if (swizzle % 2) codes = make_uint4(codes.z, codes.w, codes.x, codes.y);
        if (first_col + col >= forms.cols) continue;
        int64_t line = (span.group * forms.cols + first_col + col) * forms.line;
        store_line<wide>(forms.columns + line + row + 16 * piece, codes, span.rows - 16 * piece);
    }
}

template <fp8flow_dtype dtype, bool wide, int WARPS, int BATCH, int PER_SM>
__global__ __launch_bounds__(WARPS *F8_WARP, PER_SM) static void adamw_tile_kernel(adamw_arrays p, adamw_factors f,
                                                                                  adamw_forms forms)
{
    const int ROWS = F8_BLOCK / WARPS;
    __shared__ uint4 tile[F8_BLOCK * TILE_LINE];
    int64_t first_col = (int64_t)(blockIdx.x % forms.col_blocks) * F8_BLOCK, col = first_col + 4 * f8_lane();
    f8_device_span span = f8_span_of_block(forms.grouping, (int)(blockIdx.x / forms.col_blocks));
    adamw_place place = { span, col, (int)min((int64_t)ADAMW_QUAD, forms.cols - col) };
    int first = threadIdx.x / F8_WARP * ROWS;

    float grad_scale = grad_scale_of(f);
    if (isnan(grad_scale)) return;
    uint2 weights[ROWS];
    uint32_t amax = update_rows<wide, ROWS, BATCH>(p, f, forms, place, grad_scale, first, weights);
    float inverse = f8_scale_inverse(tile_scale<dtype, WARPS>(forms, amax));
#pragma unroll
    for (int begin = 0; begin < ROWS; begin += ROW_PIECE) {
        uint32_t codes[ROW_PIECE];
#pragma unroll
        for (int i = 0; i < ROW_PIECE; i++) {
            uint2 w = weights[begin + i];
            codes[i] = f8_encode4<dtype>(f8_bf16_low(w.x) * inverse, f8_bf16_high(w.x) * inverse,
                                         f8_bf16_low(w.y) * inverse, f8_bf16_high(w.y) * inverse);
            int row = first + begin + i;
            if (forms.rows && row < span.rows)
                store_codes<wide>(forms.rows + (span.row + row) * forms.cols + col, codes[i], place.valid);
        }
        if (forms.columns) stage_columns((uint2 *)tile, (first + begin) / ROW_PIECE, codes);
    }
    if (!forms.columns) return;
    __syncthreads();
    write_columns<wide, WARPS>(forms, span, first_col, tile);
}

/* ---- Launch ---- */

/* In FP64 on the host, as the reference does: 1 - beta^step in FP32 would lose most of its bits in the first steps. */
static adamw_factors factors_of(const fp8flow_adamw_args *a)
{
    return { a->grad_scale, /* on the device */
             a->beta1,
             1.0f - a->beta1,
             a->beta2,
             1.0f - a->beta2,
             (float)(1.0 - pow((double)a->beta1, (double)a->step)),
             (float)(1.0 - pow((double)a->beta2, (double)a->step)),
             a->eps,
             a->weight_decay,
             a->lr };
}

static bool arrays_are_wide(const fp8flow_adamw_args *a)
{
    uintptr_t any = (uintptr_t)a->master | (uintptr_t)a->m | (uintptr_t)a->v | (uintptr_t)a->grad;
    return any % 16 == 0 && (uintptr_t)a->weight % 8 == 0;
}

/* Lines of whole pieces: four columns of every array, 16 rows of the column form. */
static bool forms_are_wide(const fp8flow_adamw_args *a)
{
    const fp8flow_tensor *rows = a->rows, *columns = a->columns, *shape = rows ? rows : columns;
    if (!arrays_are_wide(a) || shape->cols % ADAMW_QUAD != 0) return false;
    if (rows && (uintptr_t)rows->data % 4 != 0) return false;
    int64_t height = shape->group_rows ? shape->group_rows : shape->rows;
    return !columns || (height % 16 == 0 && f8_aligned16(columns->data, columns->stride));
}

static adamw_forms forms_of(const fp8flow_adamw_args *a)
{
    const fp8flow_tensor *rows = a->rows, *columns = a->columns, *shape = rows ? rows : columns;
    adamw_forms forms = { f8_grouping_of(shape, NULL), f8_grid(shape->cols, F8_BLOCK), shape->cols, 0, NULL, NULL,
                          NULL, NULL };
    if (rows) {
        forms.rows = (uint8_t *)rows->data;
        forms.rows_scale = (uint8_t *)rows->scale;
    }
    if (columns) {
        forms.columns = (uint8_t *)columns->data;
        forms.columns_scale = (uint8_t *)columns->scale;
        forms.line = columns->stride;
    }
    return forms;
}

template <fp8flow_dtype dtype>
static void launch_tiles(fp8flow_context *c, const fp8flow_adamw_args *a, const adamw_arrays &p)
{
    const int threads = TILE_WARPS * F8_WARP;
    adamw_forms forms = forms_of(a);
    unsigned tiles = (unsigned)(f8_capacity_blocks(a->rows ? a->rows : a->columns) * forms.col_blocks);
    if (forms_are_wide(a))
        adamw_tile_kernel<dtype, true, TILE_WARPS, TILE_BATCH, TILES_PER_SM>
            <<<tiles, threads, 0, f8_stream(c)>>>(p, factors_of(a), forms);
    else
        adamw_tile_kernel<dtype, false, TILE_WARPS, 1, 1>
            <<<tiles, threads, 0, f8_stream(c)>>>(p, factors_of(a), forms);
}

static void launch_flat(fp8flow_context *c, const fp8flow_adamw_args *a, const adamw_arrays &p)
{
    int64_t pieces = arrays_are_wide(a) ? a->count / ADAMW_QUAD : 0, rest = a->count - pieces * ADAMW_QUAD;
    if (pieces > 0)
        adamw_flat_kernel<FLAT_PIECES><<<f8_grid(pieces, FLAT_THREADS * FLAT_PIECES), FLAT_THREADS, 0, f8_stream(c)>>>(
            p, factors_of(a), pieces);
    if (rest > 0)
        adamw_element_kernel<<<f8_grid(rest, FLAT_THREADS), FLAT_THREADS, 0, f8_stream(c)>>>(
            p, factors_of(a), pieces * ADAMW_QUAD, a->count);
}

extern "C" fp8flow_status f8_cuda_adamw(fp8flow_context *c, const fp8flow_adamw_args *a)
{
    if (a->count == 0) return FP8FLOW_OK;
    adamw_arrays p = { a->master, a->m, a->v, a->grad, a->weight };
    const fp8flow_tensor *shape = a->rows ? a->rows : a->columns;
    F8_REQUIRE(!shape || shape->rows <= INT32_MAX, ESHAPE, "adamw: %lld rows, at most 2^31-1 are possible",
               (long long)shape->rows);
    if (!shape) launch_flat(c, a, p);
    else if (shape->dtype == FP8FLOW_E5M2) launch_tiles<FP8FLOW_E5M2>(c, a, p);
    else launch_tiles<FP8FLOW_E4M3>(c, a, p);
    return f8_launched("adamw");
}
