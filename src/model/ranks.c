/* ranks.c - see ranks.h. */
#include "model/ranks.h"

static fp8flow_status split(fp8flow_comm *world, int32_t group, int32_t group_size, fp8flow_comm **part)
{
    *part = world;
    return group_size == world->size ? FP8FLOW_OK : f8_comm_split(world, group, part);
}

fp8flow_status f8_ranks_create(fp8flow_comm *world, int32_t expert_parallel, f8_ranks *ranks)
{
    int32_t ep = expert_parallel ? expert_parallel : world->size;
    *ranks = (f8_ranks){ .world = world };
    F8_REQUIRE(ep >= 1 && world->size % ep == 0, EINVAL, "expert_parallel = %d does not divide %d ranks", ep,
               world->size);
    fp8flow_status status = split(world, world->rank / ep, ep, &ranks->ep);
    if (status == FP8FLOW_OK) status = split(world, world->rank % ep, world->size / ep, &ranks->dp);
    if (status != FP8FLOW_OK) {
        f8_ranks_release(ranks);
        return f8_fail_in(status, "ranks");
    }
    ranks->world_device = ranks->world;
    ranks->dp_device = ranks->dp;
    return FP8FLOW_OK;
}

void f8_ranks_release(f8_ranks *ranks)
{
    if (ranks->ep != ranks->world) f8_comm_free(ranks->ep);
    if (ranks->dp != ranks->world) f8_comm_free(ranks->dp);
    *ranks = (f8_ranks){ 0 };
}

f8_comm_spent f8_ranks_spent(const f8_ranks *r, f8_collective collective)
{
    const fp8flow_comm *comm[] = { r->world, r->ep, r->dp, r->world_device, r->dp_device };
    f8_comm_spent sum = { 0 };
    for (int i = 0; i < 5; i++) {
        int seen = 0;
        for (int j = 0; j < i; j++) seen |= comm[j] == comm[i];
        if (seen) continue;
        sum.bytes += comm[i]->spent[collective].bytes;
        sum.seconds += comm[i]->spent[collective].seconds;
    }
    return sum;
}
