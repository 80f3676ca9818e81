/* Transposing a matrix in blocks of LANES x LANES, each in registers: halves interleaved log2(LANES) times. */
#include "common.h"

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif

INLINE void turn(vec m[LANES]) {
#pragma GCC unroll 4
    for (int stage = 1; stage < LANES; stage *= 2) {
        vec next[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = SHUFFLE(m[i], m[i + LANES / 2], LOWER);
            next[2 * i + 1] = SHUFFLE(m[i], m[i + LANES / 2], UPPER);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) m[i] = next[i];
    }
}

INLINE void turn_block(const float *from, int64_t row_step, int64_t rows, float *to, int64_t column_step) {
    vec m[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) m[i] = i < rows ? load(from + i * row_step) : (vec){0};
    turn(m);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(to + i * column_step, m[i]);
}

void transpose(const float *from, int64_t row_step, int64_t rows, float *to, int64_t column_step, int64_t columns) {
    for (int64_t r = 0; r < rows; r += LANES) {
        int64_t c = 0, left = smaller(LANES, rows - r);
        for (; c + LANES <= columns; c += LANES)
            if (left == LANES) turn_block(from + r * row_step + c, row_step, LANES, to + c * column_step + r, column_step);
            else turn_block(from + r * row_step + c, row_step, left, to + c * column_step + r, column_step);
        for (; c < columns; c++)
            for (int i = 0; i < LANES; i++) to[c * column_step + r + i] = i < left ? from[(r + i) * row_step + c] : 0;
    }
}

void transpose_into(const float *from, int64_t row_step, int64_t rows, float *to, int64_t column_step, int64_t columns) {
    int64_t whole = rows / LANES * LANES;
    transpose(from, row_step, whole, to, column_step, columns);
    for (int64_t r = whole; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[c * column_step + r] = from[r * row_step + c];
}
