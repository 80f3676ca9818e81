/* Augmentation of a batch, as xpcnn/kernels/augmentation.py defines it: bytes come out the same to the last bit. One
 * thread does it all, with memory of its own: it runs in the background while the other threads train. */
#include "common.h"

#include <math.h>
#include <stdlib.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define ONE 65536  /* of positions, gains, offsets and shares */
#define UNIT 2048  /* of an interpolation's weights */
#define ROUNDED 16 /* half of ONE / UNIT */
#define BLACK 2    /* pixels of black about an image: who looks further outside sees no more than that */

enum { SHIFT = 1, WARP = 2, COLOUR = 4, CUTOUT = 8, MIX = 16 };

typedef struct { /* an image's row of the table */
    float affine[6], gain, offset, cutout[4], mix, box[4], share;
} Row;

typedef struct {
    const void *images;
    const Row *table;
    void *out;
    int64_t count, channels, height, width, stages;
} Augment;

typedef struct { int64_t top, left, bottom, right; } Box;

INLINE Box box_of(const float *b, int64_t height, int64_t width) {
    return (Box){larger(0, b[0]), larger(0, b[1]), smaller(height, b[2]), smaller(width, b[3])};
}

INLINE int64_t clipped(int64_t n, int64_t least, int64_t most) { return larger(least, smaller(most, n)); }
INLINE int32_t clipped32(int32_t n, int32_t least, int32_t most) { return n < least ? least : n > most ? most : n; }

/* Four bytes each from a number of bytes after `start`. */
#if defined(__AVX512F__)
INLINE ivec gathered(const void *start, ivec at) { return (ivec)_mm512_i32gather_epi32((__m512i)at, start, 1); }
#elif defined(__AVX2__)
INLINE ivec gathered(const void *start, ivec at) { return (ivec)_mm256_i32gather_epi32(start, (__m256i)at, 1); }
#else
INLINE ivec gathered(const void *start, ivec at) {
    int32_t found[LANES];
    for (int i = 0; i < LANES; i++) memcpy(found + i, (const char *)start + at[i], sizeof *found);
    return *(const ivec *)found;
}
#endif

INLINE ivec chosen(ivec mask, ivec yes, ivec no) { return (yes & mask) | (no & ~mask); }
INLINE ivec within(ivec n, int32_t least, int32_t most) {
    const ivec low = least - (ivec){0}, high = most - (ivec){0}, raised = chosen(n < low, low, n);
    return chosen(raised > high, high, raised);
}

/* Where some neighbours of a row come from: pixels of a plane with BLACK about it, and weights of the next to the right
 * and below. */
typedef struct { ivec cell, right, lower; } Places;

/* Those of pixels (x, y) and following, by a map in whole numbers. */
INLINE Places places(const int64_t *m, int64_t x, int64_t y, int64_t height, int64_t width) {
    ivec i;
    for (int k = 0; k < LANES; k++) i[k] = k;
    const ivec a = ((int32_t)(m[0] * x + m[1] * y + m[2] + ROUNDED) + i * (int32_t)m[0]) >> 5;
    const ivec b = ((int32_t)(m[3] * x + m[4] * y + m[5] + ROUNDED) + i * (int32_t)m[3]) >> 5;
    const ivec column = within(a >> 11, -BLACK, (int32_t)width), row = within(b >> 11, -BLACK, (int32_t)height);
    return (Places){(row + BLACK) * (int32_t)(width + 2 * BLACK) + column + BLACK, a & (UNIT - 1), b & (UNIT - 1)};
}

/* The same where positions need more than 32 bits. */
static Places far_places(const int64_t *m, int64_t x, int64_t y, int64_t height, int64_t width) {
    Places p;
    for (int i = 0; i < LANES; i++) {
        const int64_t a = (m[0] * (x + i) + m[1] * y + m[2] + ROUNDED) >> 5;
        const int64_t b = (m[3] * (x + i) + m[4] * y + m[5] + ROUNDED) >> 5;
        const int64_t column = clipped(a >> 11, -BLACK, width), row = clipped(b >> 11, -BLACK, height);
        p.cell[i] = (row + BLACK) * (width + 2 * BLACK) + column + BLACK;
        p.right[i] = a & (UNIT - 1);
        p.lower[i] = b & (UNIT - 1);
    }
    return p;
}

/* Whether all positions of an image, and a vector beyond its right edge, fit 32 bits. */
static int are_near(const int64_t *m, int64_t height, int64_t width) {
    const int64_t limit = INT64_C(1) << 30, w = width + 2 * LANES;
    for (int axis = 0; axis < 6; axis += 3)
        if (llabs(m[axis]) * w + llabs(m[axis + 1]) * height + llabs(m[axis + 2]) >= limit) return 0;
    return 1;
}

/* Whether a map moves whole pixels, mirrored or not. */
static int is_whole(const int64_t *m) {
    return llabs(m[0]) == ONE && !m[1] && !(m[2] & (ONE - 1)) && !m[3] && m[4] == ONE && !(m[5] & (ONE - 1));
}

/* Interpolate between pixels of a plane and their right, lower and lower right neighbours; rows are `step` apart. */
INLINE void fetch_u8(const uint8_t *plane, Places p, int64_t step, uint8_t *out) {
    const ivec upper = gathered(plane, p.cell), under = gathered(plane + step, p.cell);
    const ivec a = (upper & 255) * UNIT + ((upper >> 8 & 255) - (upper & 255)) * p.right;
    const ivec b = (under & 255) * UNIT + ((under >> 8 & 255) - (under & 255)) * p.right;
    *(bytes *)out = __builtin_convertvector((a * UNIT + (b - a) * p.lower + UNIT * UNIT / 2) >> 22, bytes);
}

INLINE void fetch_f32(const float *plane, Places p, int64_t step, float *out) {
    const vec right = __builtin_convertvector(p.right, vec) * (1.0f / UNIT);
    const vec lower = __builtin_convertvector(p.lower, vec) * (1.0f / UNIT);
    const ivec at = p.cell * 4;
    const vec a = (vec)gathered(plane, at) * (1 - right) + (vec)gathered(plane + 1, at) * right;
    const vec b = (vec)gathered(plane + step, at) * (1 - right) + (vec)gathered(plane + step + 1, at) * right;
    store(out, a * (1 - lower) + b * lower);
}

INLINE void colour_u8(uint8_t *p, int64_t size, const Row *row) {
    const int32_t gain = (int32_t)rintf(row->gain * ONE);
    const int32_t offset = (int32_t)rintf(row->offset * (255.0f * ONE)) + ONE / 2;
    for (int64_t i = 0; i < size; i++) p[i] = clipped32((gain * p[i] + offset) >> 16, 0, 255);
}

INLINE void colour_f32(float *p, int64_t size, const Row *row) {
    for (int64_t i = 0; i < size; i++) {
        const float v = row->gain * p[i] + row->offset;
        p[i] = v < 0 ? 0 : v > 1 ? 1 : v;
    }
}

INLINE void mix_u8(const uint8_t *own, const uint8_t *other, uint8_t *out, int64_t size, float mix) {
    const int32_t share = (int32_t)rintf(mix * ONE);
    for (int64_t i = 0; i < size; i++) out[i] = (share * own[i] + (ONE - share) * other[i] + ONE / 2) >> 16;
}

INLINE void mix_f32(const float *own, const float *other, float *out, int64_t size, float mix) {
    for (int64_t i = 0; i < size; i++) out[i] = mix * own[i] + (1 - mix) * other[i];
}

#define PIXEL uint8_t
#define OF(name) name##_u8
#include "augmentation.h"
#undef PIXEL
#undef OF

#define PIXEL float
#define OF(name) name##_f32
#include "augmentation.h"
