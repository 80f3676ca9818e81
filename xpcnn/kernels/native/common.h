/* What the native kernels share: vectors of floats as wide as the machine's, and work in shares.
 *
 * Compiled for the machine it runs on (-march=native); LANES floats fill a register. All arrays are float32, in C order.
 */
#ifndef XPCNN_COMMON_H
#define XPCNN_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8 /* of a tile of sums that stays in registers: ROWS x VECS, with VECS operands beside it */
#define VECS 3
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#define VECS 3
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 8
#define VECS 3
#else
#define LANES 4
#define ROWS 4
#define VECS 3
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec splat(float s) { return s - (vec){0}; }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
INLINE float total(vec v) {
    float sums[LANES];
    store(sums, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}
INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Run fn(job, share, shares) for every share, each in a thread of its own; the caller runs share 0. */
typedef void (*share_fn)(void *job, int share, int shares);
void in_shares(share_fn fn, void *job, int shares);

/* The part of count things that a share works on: [first, first of the next share). */
INLINE int64_t first_of(int64_t count, int share, int shares) { return count * share / shares; }

/* Write rows x columns floats (row_step apart) as columns x rows floats (column_step apart), with zeros for rows up to
 * a multiple of LANES, for which there must be room. */
void transpose(const float *from, int64_t row_step, int64_t rows, float *to, int64_t column_step, int64_t columns);

/* The same without the zeros. */
void transpose_into(const float *from, int64_t row_step, int64_t rows, float *to, int64_t column_step, int64_t columns);

#endif
