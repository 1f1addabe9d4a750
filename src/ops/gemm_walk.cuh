/* gemm_walk.cuh - the tiles of a grouped product whose rows belong to experts, counted on the device.
 *
 * Tiles of 128 rows begin at every expert's first row; a unit is what a cluster of one or two blocks computes. Two
 * blocks take two row tiles of an expert and the same columns (they share b); an odd last row tile is computed with
 * two column tiles (they share a). Units of an expert go down a band of row tiles before the next columns, so that
 * what L2 must hold stays small. Every block computes the same order from the counts and takes every n-th unit.
 */
#ifndef F8_OPS_GEMM_WALK_CUH
#define F8_OPS_GEMM_WALK_CUH

#include <stdint.h>

#include "ops/gemm_config.h"
#include "ops/hopper.cuh"
#include "ops/warp.cuh"

enum { F8_WALK_ROWS = 128 };

/* Where the rows of c lie, and how c is walked. Offset NULL: one expert with all rows. */
struct f8_walk_groups {
    const int32_t *offset, *rows;
    int32_t experts, capacity, columns, band;

    __device__ int begin(int e) const { return offset ? offset[e] : 0; }
    __device__ int end(int e) const { return offset ? offset[e + 1] : capacity; }
    __device__ int used(int e) const { return offset ? rows[e] : capacity; }
    __device__ int row_tiles(int e) const { return (end(e) - begin(e) + F8_WALK_ROWS - 1) / F8_WALK_ROWS; }
};

/* Where the lines of c lie: with the rows of the activations, or `lines` (not 0) per expert in a gradient. */
struct f8_walk_lines {
    f8_walk_groups rows;
    int32_t experts, columns, band, lines;
    bool empty_untouched; /* an expert without rows has no tiles of the gradient */

    __device__ int begin(int e) const { return lines ? e * lines : rows.begin(e); }
    __device__ int end(int e) const { return lines ? begin(e) + lines : rows.end(e); }
    __device__ int used(int e) const { return lines ? lines : rows.used(e); }
    __device__ int row_tiles(int e) const
    {
        if (!lines) return rows.row_tiles(e);
        return empty_untouched && rows.used(e) == 0 ? 0 : (lines + F8_WALK_ROWS - 1) / F8_WALK_ROWS;
    }
};

enum f8_walk_share { F8_SHARE_NOTHING, F8_SHARE_A, F8_SHARE_B };

struct f8_walk_tile {
    int expert;
    int row, valid, limit; /* rows row .. row + 127: below `valid` in use, below `limit` the expert's */
    int n;                 /* first column */
    f8_walk_share share;
};

/* The walk of a block over tiles of tile_n columns. `cumulative`: see f8_walk_count. Groups: f8_walk_groups or what has
 * its functions, experts, columns and band. All that does not change is read anew: registers are few. */
template <int tile_n, int cluster, class Groups = f8_walk_groups> struct f8_walk {
    const Groups &groups;
    const int32_t *cumulative;
    int index, expert;

    __device__ f8_walk(const Groups &groups, const int32_t *cumulative)
        : groups(groups), cumulative(cumulative), index(blockIdx.x / cluster), expert(0)
    {
    }

    __device__ static int column_tiles(const Groups &groups) { return (groups.columns + tile_n - 1) / tile_n; }

    __device__ static int units(int row_tiles, int column_tiles)
    {
        if (cluster == 1) return row_tiles * column_tiles;
        return row_tiles / 2 * column_tiles + row_tiles % 2 * ((column_tiles + 1) / 2);
    }

    __device__ bool next(f8_walk_tile *t)
    {
        if (index >= cumulative[groups.experts]) return false;
        while (index >= cumulative[expert + 1]) expert++;
        int row_tiles = groups.row_tiles(expert), lines = row_tiles / cluster, local = index - cumulative[expert];
        int m, n, columns = column_tiles(groups), band = groups.band, rank = cluster > 1 ? (int)f8_cluster_rank() : 0;
        if (local < lines * columns) {
            int whole = local / (band * columns), inside = local - whole * band * columns;
            int height = min(band, lines - whole * band);
            m = (whole * band + inside % height) * cluster + rank;
            n = inside / height;
            t->share = cluster == 1 ? F8_SHARE_NOTHING : F8_SHARE_B;
        } else {
            m = row_tiles - 1;
            n = (local - lines * columns) * cluster + rank;
            t->share = F8_SHARE_A;
        }
        t->expert = expert;
        t->row = groups.begin(expert) + m * F8_WALK_ROWS;
        t->valid = groups.begin(expert) + groups.used(expert);
        t->limit = groups.end(expert);
        t->n = n * tile_n;
        index += gridDim.x / cluster;
        return true;
    }
};

/* One warp: cumulative[e] = units of the experts before e, up to e = experts. */
template <class Walk, class Groups>
__device__ static void f8_walk_count(const Groups &groups, int32_t *cumulative)
{
    int lane = f8_lane(), total = 0;
    for (int base = 0; base < groups.experts; base += 32) {
        int e = base + lane;
        int units = e < groups.experts ? Walk::units(groups.row_tiles(e), Walk::column_tiles(groups)) : 0, sum = units;
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            int other = __shfl_up_sync(F8_ALL_LANES, sum, step);
            if (lane >= step) sum += other;
        }
        if (e < groups.experts) cumulative[e] = total + sum - units;
        total += __shfl_sync(F8_ALL_LANES, sum, 31);
    }
    if (lane == 0) cumulative[groups.experts] = total;
}

#endif
