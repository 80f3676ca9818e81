/* Products of matrices, C = A·B, with the same tiles as convolutions: A in blocks of ROWS rows, B in panels of columns. */
#include "tile.h"

#define DEPTH 256 /* of a panel: it stays in the first-level cache */

typedef struct {
    int64_t rows, cols, depth;
    int64_t a_row, a_col, b_row, b_col; /* steps, in floats; one of each pair is 1 */
    const float *a, *b, *bias;          /* bias of each column, or NULL */
    float *c, *workspace;
} Product;

static int64_t blocks_of(const Product *p) { return (p->rows + ROWS - 1) / ROWS; }
static int64_t panels_of(const Product *p) { return (p->cols + PANEL - 1) / PANEL; }

/* ROWS rows as columns of ROWS floats, in pieces that stay in registers or next to them. */
static void turn_rows(const float *from, int64_t row_step, int64_t columns, float *to) {
    int64_t k = 0;
    for (; k + LANES <= columns; k += LANES) {
        float piece[LANES * LANES];
        transpose(from + k, row_step, ROWS, piece, LANES, LANES);
        for (int64_t c = 0; c < LANES; c++) memcpy(to + (k + c) * ROWS, piece + c * LANES, 4 * ROWS);
    }
    for (; k < columns; k++)
        for (int64_t i = 0; i < ROWS; i++) to[k * ROWS + i] = from[i * row_step + k];
}

/* Lay A out in blocks: (blocks, depth, ROWS), zeros below the last row. */
static void pack_share(void *job, int share, int shares) {
    const Product *p = job;
    for (int64_t n = first_of(blocks_of(p), share, shares); n < first_of(blocks_of(p), share + 1, shares); n++) {
        float *to = p->workspace + n * ROWS * p->depth;
        const float *from = p->a + n * ROWS * p->a_row;
        int64_t rows = smaller(ROWS, p->rows - n * ROWS);
        if (p->a_col == 1 && rows == ROWS) turn_rows(from, p->a_row, p->depth, to);
        else
            for (int64_t k = 0; k < p->depth; k++)
                for (int64_t i = 0; i < ROWS; i++) to[k * ROWS + i] = i < rows ? from[i * p->a_row + k * p->a_col] : 0;
    }
}

/* Lay a panel of B out: (depth, PANEL), zeros beyond the last column. */
static void pack_panel(const Product *p, int64_t k0, int64_t depth, int64_t col, float *to) {
    int64_t cols = smaller(PANEL, p->cols - col);
    const float *from = p->b + k0 * p->b_row + col * p->b_col;
    if (p->b_col == 1)
        for (int64_t k = 0; k < depth; k++) {
            memcpy(to + k * PANEL, from + k * p->b_row, 4 * cols);
            memset(to + k * PANEL + cols, 0, 4 * (PANEL - cols));
        }
    else {
        transpose(from, p->b_col, cols, to, PANEL, depth);
        for (int64_t k = 0; k < depth; k++)
            for (int64_t i = round_up(cols, LANES); i < PANEL; i++) to[k * PANEL + i] = 0;
    }
}

static void product_share(void *job, int share, int shares) {
    const Product *p = job;
    int64_t packed = blocks_of(p) * ROWS * p->depth, by_rows = p->rows >= p->cols;
    int64_t block = by_rows ? first_of(blocks_of(p), share, shares) : 0, last_block = by_rows ? first_of(blocks_of(p), share + 1, shares) : blocks_of(p);
    int64_t panel = by_rows ? 0 : first_of(panels_of(p), share, shares), last_panel = by_rows ? panels_of(p) : first_of(panels_of(p), share + 1, shares);
    float *b = p->workspace + packed + share * (DEPTH * PANEL + DEPTH);
    int32_t *at = (int32_t *)(b + DEPTH * PANEL);
    const float *from[VECS];
    for (; panel < last_panel; panel++) {
        int64_t col = panel * PANEL, cols = smaller(PANEL, p->cols - col);
        int direct = p->b_col == 1 && cols == PANEL && p->b_row < INT32_MAX / DEPTH; /* B's rows serve as they are */
        for (int64_t k = 0; k < DEPTH; k++) at[k] = k * (direct ? p->b_row : PANEL);
        for (int64_t k = 0; k < p->depth; k += DEPTH) {
            int64_t depth = smaller(DEPTH, p->depth - k);
            if (!direct) pack_panel(p, k, depth, col, b);
            for (int v = 0; v < VECS; v++) from[v] = (direct ? p->b + k * p->b_row + col : b) + v * LANES;
            for (int64_t n = block; n < last_block; n++) {
                vec sums[ROWS][VECS];
                multiply(cols, depth, p->workspace + (n * p->depth + k) * ROWS, from, at, sums);
                for (int64_t i = 0; i < smaller(ROWS, p->rows - n * ROWS); i++) {
                    float *to = p->c + (n * ROWS + i) * p->cols + col, *row = (float *)sums[i];
                    if (k)
                        for (int64_t q = 0; q < cols; q++) to[q] += row[q];
                    else if (p->bias)
                        for (int64_t q = 0; q < cols; q++) to[q] = row[q] + p->bias[col + q];
                    else
                        memcpy(to, row, 4 * cols);
                }
            }
        }
    }
}

EXPORT int64_t product_workspace(const Product *p, int shares) {
    return blocks_of(p) * ROWS * p->depth + shares * (int64_t)(DEPTH * PANEL + DEPTH);
}

EXPORT void product(const Product *p, int shares) {
    in_shares(pack_share, (void *)p, shares);
    in_shares(product_share, (void *)p, shares);
}
