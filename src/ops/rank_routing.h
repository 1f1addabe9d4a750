/* rank_routing.h - which experts belong to which rank. Read by C and by CUDA C++. */
#ifndef F8_OPS_RANK_ROUTING_H
#define F8_OPS_RANK_ROUTING_H

#include "base/fp8.h"

/* Rank r of R owns experts [E r / R, E (r+1) / R). */
F8_INLINE int32_t f8_first_expert(int32_t rank, int64_t num_experts, int64_t num_ranks)
{
    return (int32_t)(num_experts * rank / num_ranks);
}

/* -1 for what is no expert. */
F8_INLINE int32_t f8_rank_of_expert(int32_t expert, int64_t num_experts, int64_t num_ranks)
{
    if (expert < 0 || expert >= num_experts) return -1;
    return (int32_t)(((int64_t)(expert + 1) * num_ranks - 1) / num_experts);
}

#endif
