/* The tile of sums that stays in registers, of which every product is made. */
#ifndef XPCNN_TILE_H
#define XPCNN_TILE_H

#include "common.h"

#define PANEL (VECS * LANES) /* columns of a tile */

/* sums[i][v] = the products of ROWS rows (of which `a` has column k at k * step) with VECS vectors of columns: row k of vector v is at b[v] + at[k]. */
#define MULTIPLY(NAME, NV) \
    static __attribute__((noinline)) void NAME(int64_t depth, const float *a, int64_t step, const float *const b[VECS], const int32_t *at, vec sums[ROWS][VECS]) { \
        vec s[ROWS][NV] = {{{0}}}; \
        const float *row[NV]; \
        for (int v = 0; v < NV; v++) row[v] = b[v]; \
        for (int64_t k = 0; k < depth; k++, a += step) { \
            vec w[NV]; \
            _Pragma("GCC unroll 3") for (int v = 0; v < NV; v++) w[v] = load(row[v] + at[k]); \
            _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++) \
                _Pragma("GCC unroll 3") for (int v = 0; v < NV; v++) s[i][v] += a[i] * w[v]; \
        } \
        _Pragma("GCC unroll 8") for (int i = 0; i < ROWS; i++) \
            _Pragma("GCC unroll 3") for (int v = 0; v < NV; v++) sums[i][v] = s[i][v]; \
    }
MULTIPLY(multiply1, 1)
MULTIPLY(multiply2, 2)
MULTIPLY(multiply3, 3)

INLINE void multiply(int64_t columns, int64_t depth, const float *a, int64_t step, const float *const b[VECS], const int32_t *at, vec sums[ROWS][VECS]) {
    if (columns > 2 * LANES) multiply3(depth, a, step, b, at, sums);
    else if (columns > LANES) multiply2(depth, a, step, b, at, sums);
    else multiply1(depth, a, step, b, at, sums);
}

#endif
