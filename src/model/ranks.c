/* ranks.c - see ranks.h. */
#include "model/ranks.h"

static fp8flow_status split(fp8flow_comm *world, int32_t group, int32_t group_size, fp8flow_comm **part)
{
    *part = world;
    return group_size == world->size ? FP8FLOW_OK : f8_comm_split(world, group, part);
}

fp8flow_status f8_ranks_create(const fp8flow_context *context, fp8flow_comm *world, int32_t expert_parallel,
                               f8_ranks *ranks)
{
    int32_t ep = expert_parallel ? expert_parallel : world->size;
    *ranks = (f8_ranks){ .world = world };
    F8_REQUIRE(ep >= 1 && world->size % ep == 0, EINVAL, "expert_parallel = %d does not divide %d ranks", ep,
               world->size);
    fp8flow_status status;
    F8_TRY_GOTO(status, split(world, world->rank / ep, ep, &ranks->ep));
    F8_TRY_GOTO(status, split(world, world->rank % ep, world->size / ep, &ranks->dp));
    F8_TRY_GOTO(status, f8_comm_for_device(world, context->device, context->stream, &ranks->world_device));
    F8_TRY_GOTO(status, f8_comm_for_device(ranks->ep, context->device, context->stream, &ranks->ep_device));
    F8_TRY_GOTO(status, f8_comm_for_device(ranks->dp, context->device, context->stream, &ranks->dp_device));
    return FP8FLOW_OK;
fail:
    f8_ranks_release(ranks);
    return f8_fail_in(status, "ranks");
}

void f8_ranks_release(f8_ranks *ranks)
{
    f8_comm_release(ranks->dp_device);
    f8_comm_release(ranks->ep_device);
    f8_comm_release(ranks->world_device);
    if (ranks->ep != ranks->world) f8_comm_free(ranks->ep);
    if (ranks->dp != ranks->world) f8_comm_free(ranks->dp);
    *ranks = (f8_ranks){ 0 };
}

void f8_ranks_clock_start(const f8_ranks *ranks)
{
    f8_comm_clock_start(ranks->world_device);
    f8_comm_clock_start(ranks->ep_device);
    f8_comm_clock_start(ranks->dp_device);
}

fp8flow_status f8_ranks_clock_read(const f8_ranks *ranks)
{
    F8_TRY(f8_comm_clock_read(ranks->world_device));
    F8_TRY(f8_comm_clock_read(ranks->ep_device));
    return f8_comm_clock_read(ranks->dp_device);
}

/* Several may be the same. */
f8_comm_spent f8_ranks_spent(const f8_ranks *ranks, f8_collective collective)
{
    const fp8flow_comm *const comm[] = { ranks->world,        ranks->ep,        ranks->dp,
                                         ranks->world_device, ranks->ep_device, ranks->dp_device };
    f8_comm_spent sum = { 0 };
    for (int i = 0; i < 6; i++) {
        int seen = 0;
        for (int j = 0; j < i; j++) seen = seen || comm[j] == comm[i];
        if (seen) continue;
        sum.bytes += comm[i]->spent[collective].bytes;
        sum.seconds += comm[i]->spent[collective].seconds;
    }
    return sum;
}
