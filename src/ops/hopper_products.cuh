/* hopper_products.cuh - warpgroup matrix products of sm_90a, one function per shape. They run on their own: see
 * f8_products_begin, _commit and _wait in hopper.cuh. Operands are descriptors of shared memory, accumulators registers
 * of the warpgroup, which nothing may touch until the wait.
 */
#ifndef F8_OPS_HOPPER_PRODUCTS_CUH
#define F8_OPS_HOPPER_PRODUCTS_CUH

#include "ops/hopper.cuh"

/* Accumulators i .. i + 7 and so on as operands, and their places %0 .. in the text of an instruction. */
#define F8_FLOATS_8(d, i)                                                                             \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),       \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define F8_FLOATS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F8_FLOATS_32(d, i) F8_FLOATS_8(d, i), F8_FLOATS_8(d, i + 8), F8_FLOATS_8(d, i + 16), F8_FLOATS_8(d, i + 24)
#define F8_PLACES_12 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
#define F8_PLACES_24 F8_PLACES_12 ", %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23"
#define F8_PLACES_32 F8_PLACES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define F8_PLACES_48 \
    F8_PLACES_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define F8_PLACES_64 \
    F8_PLACES_48 ", " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define F8_PLACES_96 \
    F8_PLACES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define F8_PLACES_128 \
    F8_PLACES_96 ", " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

/* d[64 x 128] = a[64 x 32] * b[128 x 32]^T (+ d if accumulate), E4M3, FP32 accumulators of the warpgroup. */
__device__ static inline void f8_product_e4m3(float (&d)[64], uint64_t a, uint64_t b, int accumulate)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {" F8_PLACES_64
                 "}, %64, %65, p, 1, 1;\n"
                 "}"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_32(d, 32)
                 : "l"(a), "l"(b), "r"(accumulate));
}

/* d[64 x 192] = a[64 x 32] * b[192 x 32]^T (+ d if accumulate). */
__device__ static inline void f8_product_e4m3(float (&d)[96], uint64_t a, uint64_t b, int accumulate)
{
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.ne.b32 p, %98, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n192k32.f32.e4m3.e4m3 {" F8_PLACES_96
                 "}, %96, %97, p, 1, 1;\n"
                 "}"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_32(d, 32), F8_FLOATS_32(d, 64)
                 : "l"(a), "l"(b), "r"(accumulate));
}

/* d[64 x 256] += a[64 x 16] * b[256 x 16]^T, BF16, FP32 accumulators; a_outer, b_outer: 1 where the operand is
 * MN-major. */
template <int a_outer, int b_outer>
__device__ static inline void f8_product_bf16(float (&d)[128], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" F8_PLACES_128
                 "}, %128, %129, 1, 1, 1, %130, %131;"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_32(d, 32), F8_FLOATS_32(d, 64), F8_FLOATS_32(d, 96)
                 : "l"(a), "l"(b), "n"(a_outer), "n"(b_outer));
}

/* The same with the first 128 lines of b, into the first half of d. */
template <int a_outer, int b_outer>
__device__ static inline void f8_product_bf16_half(float (&d)[128], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" F8_PLACES_64
                 "}, %64, %65, 1, 1, 1, %66, %67;"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_32(d, 32)
                 : "l"(a), "l"(b), "n"(a_outer), "n"(b_outer));
}

/* d[64 x 64] = a[64 x 16] * b[64 x 16]^T (+ d if accumulate), BF16, FP32 accumulators; both K-major. */
template <int accumulate> __device__ static inline void f8_product_bf16_rows(float (&d)[32], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" F8_PLACES_32 "}, %32, %33, %34, 1, 1, 0, 0;"
                 : F8_FLOATS_32(d, 0)
                 : "l"(a), "l"(b), "n"(accumulate));
}

/* d[64 x 128] = a[64 x 16] * b[128 x 16]^T (+ d if accumulate). */
template <int accumulate> __device__ static inline void f8_product_bf16_rows(float (&d)[64], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" F8_PLACES_64 "}, %64, %65, %66, 1, 1, 0, 0;"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_32(d, 32)
                 : "l"(a), "l"(b), "n"(accumulate));
}

/* d[64 x 64] += a[64 x 16] * b[16 x 64], BF16, FP32 accumulators; b is MN-major, a the four registers from `i` on: of
 * 64 x 16 accumulators as pairs, in their order. */
template <int i, int count>
__device__ static inline void f8_product_bf16_pairs(float (&d)[32], const uint32_t (&a)[count], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" F8_PLACES_32
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : F8_FLOATS_32(d, 0)
                 : "r"(a[i]), "r"(a[i + 1]), "r"(a[i + 2]), "r"(a[i + 3]), "l"(b));
}

/* d[64 x 128] += a[64 x 16] * b[16 x 128]. */
template <int i, int count>
__device__ static inline void f8_product_bf16_pairs(float (&d)[64], const uint32_t (&a)[count], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" F8_PLACES_64
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_32(d, 32)
                 : "r"(a[i]), "r"(a[i + 1]), "r"(a[i + 2]), "r"(a[i + 3]), "l"(b));
}

/* d[64 x n] += a[64 x 16] * b[n x 16]^T for n = 24, 48, 96, 192; b is K-major. */
template <int a_outer> __device__ static inline void f8_product_bf16_narrow(float (&d)[12], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n24k16.f32.bf16.bf16 {" F8_PLACES_12
                 "}, %12, %13, 1, 1, 1, %14, 0;"
                 : F8_FLOATS_8(d, 0), F8_FLOATS_4(d, 8)
                 : "l"(a), "l"(b), "n"(a_outer));
}

template <int a_outer> __device__ static inline void f8_product_bf16_narrow(float (&d)[24], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {" F8_PLACES_24
                 "}, %24, %25, 1, 1, 1, %26, 0;"
                 : F8_FLOATS_8(d, 0), F8_FLOATS_8(d, 8), F8_FLOATS_8(d, 16)
                 : "l"(a), "l"(b), "n"(a_outer));
}

template <int a_outer> __device__ static inline void f8_product_bf16_narrow(float (&d)[48], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n96k16.f32.bf16.bf16 {" F8_PLACES_48
                 "}, %48, %49, 1, 1, 1, %50, 0;"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_8(d, 32), F8_FLOATS_8(d, 40)
                 : "l"(a), "l"(b), "n"(a_outer));
}

template <int a_outer> __device__ static inline void f8_product_bf16_narrow(float (&d)[96], uint64_t a, uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" F8_PLACES_96
                 "}, %96, %97, 1, 1, 1, %98, 0;"
                 : F8_FLOATS_32(d, 0), F8_FLOATS_32(d, 32), F8_FLOATS_32(d, 64)
                 : "l"(a), "l"(b), "n"(a_outer));
}

#undef F8_FLOATS_32
#undef F8_FLOATS_4
#undef F8_FLOATS_8
#undef F8_PLACES_12
#undef F8_PLACES_128
#undef F8_PLACES_24
#undef F8_PLACES_32
#undef F8_PLACES_48
#undef F8_PLACES_64
#undef F8_PLACES_96

#endif
