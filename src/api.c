/* api.c - what the library says about itself: version, recipes, features of this build and machine. */
#include <stdio.h>

#include "comm/comm_mpi.h"
#include "comm/comm_nccl.h"
#include "fp8flow.h"
#include "ops/blas.h"
#include "ops/ops.h"
#include "recipe/recipe.h"

const char *fp8flow_version(void)
{
    return FP8FLOW_VERSION;
}

const char *fp8flow_build(void)
{
    return FP8FLOW_BUILD;
}

const char *fp8flow_recipe_name(int64_t index)
{
    const f8_recipe *recipe = f8_recipe_at(index);
    return recipe ? recipe->name : NULL;
}

const char *fp8flow_recipe_summary(int64_t index)
{
    const f8_recipe *recipe = f8_recipe_at(index);
    return recipe ? recipe->summary : NULL;
}

fp8flow_status fp8flow_recipe_check(const char *text)
{
    f8_recipe recipe;
    return f8_recipe_find(text, &recipe);
}

const char *fp8flow_better_blas_core(void)
{
    return f8_blas_better_core();
}

/* ---- Features ---- */

static fp8flow_feature find_avx2(void)
{
    int found = f8_cpu_has_avx2();
    return (fp8flow_feature){ "AVX2", found, found ? "with FMA and F16C" : "not on this processor",
                              found ? ""
                                    : "the reference operators run: about 5 to 20 times slower outside the products" };
}

static fp8flow_feature find_openblas(void)
{
    const char *better = fp8flow_better_blas_core();
    return (fp8flow_feature){
        "OpenBLAS", 1, f8_blas_description(),
        better ? "its kernels are for an older processor: set OPENBLAS_CORETYPE (the fp8flow program does)" : ""
    };
}

static fp8flow_feature find_openmp(void)
{
#if defined(_OPENMP)
    return (fp8flow_feature){ "OpenMP", 1, "compiled in", "" };
#else
    return (fp8flow_feature){ "OpenMP", 0, "not compiled in", "one thread per rank; use more ranks instead" };
#endif
}

static fp8flow_feature find_cuda(void)
{
    int usable;
    const char *summary = f8_device_cuda_summary(&usable);
    return (fp8flow_feature){ "CUDA", usable, summary, usable ? "" : "everything runs on the CPU" };
}

static fp8flow_feature find_mpi(void)
{
    static char versions[256];
    int found = f8_comm_describe_mpi(versions, sizeof versions) > 0;
    return (fp8flow_feature){ "MPI", found,
                              found ? versions : "neither Open MPI nor MPICH, or this build is without them",
                              found ? "" : "ranks are threads of one process, on one machine" };
}

static fp8flow_feature find_nccl(void)
{
    int usable;
    const char *summary = f8_comm_nccl_summary(&usable);
    return (fp8flow_feature){ "NCCL", usable, summary, usable ? "" : "ranks on GPUs exchange through host memory" };
}

fp8flow_status fp8flow_feature_get(int64_t index, fp8flow_feature *feature)
{
    F8_REQUIRE(feature, EINVAL, "feature_get: NULL argument");
    switch (index) {
    case 0: *feature = find_avx2(); break;
    case 1: *feature = find_openblas(); break;
    case 2: *feature = find_openmp(); break;
    case 3: *feature = find_cuda(); break;
    case 4: *feature = find_mpi(); break;
    case 5: *feature = find_nccl(); break;
    default: return F8_FAIL(EINVAL, "feature_get: index %lld of 6", (long long)index);
    }
    return FP8FLOW_OK;
}
