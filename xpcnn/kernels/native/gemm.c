/* Products of matrices, C = A·B, with the same tiles as convolutions: A in blocks of ROWS rows, B in panels of columns. */
#include "tile.h"

#define DEPTH 256 /* of a panel: it stays in the first-level cache */

typedef struct {
    int64_t rows, cols, depth;
    int64_t a_row, a_col, b_row, b_col; /* steps, in floats; one of each pair is 1 */
    const float *a, *b;
    float *c, *workspace;
} Product;

static int64_t blocks_of(const Product *p) { return (p->rows + ROWS - 1) / ROWS; }
static int64_t panels_of(const Product *p) { return (p->cols + PANEL - 1) / PANEL; }

/* Whether A's rows lie side by side, so that its columns serve as they are; but for the last rows. */
static int reads_directly(const Product *p, int64_t block) { return p->a_row == 1 && (block + 1) * ROWS <= p->rows; }

/* Lay A out in blocks: (blocks, depth, ROWS), zeros below the last row. */
static void pack_share(void *job, int share, int shares) {
    const Product *p = job;
    int64_t end = first_of(blocks_of(p), share + 1, shares), pair = LANES / ROWS;
    float piece[LANES * LANES];
    for (int64_t n = first_of(blocks_of(p), share, shares), next; n < end; n = next) {
        const float *from = p->a + n * ROWS * p->a_row;
        float *to = p->workspace + n * ROWS * p->depth;
        int64_t rows = smaller(ROWS, p->rows - n * ROWS), k = 0;
        next = n + 1;
        if (reads_directly(p, n)) continue;
        if (LANES % ROWS == 0 && p->a_col == 1 && n + pair <= end && (n + pair) * ROWS <= p->rows) /* LANES rows at once */
            for (next = n + pair; k + LANES <= p->depth; k += LANES) {
                transpose(from + k, p->a_row, LANES, piece, LANES, LANES);
                for (int64_t c = 0; c < LANES; c++)
                    for (int64_t i = 0; i < pair; i++)
                        memcpy(to + (i * p->depth + k + c) * ROWS, piece + c * LANES + i * ROWS, 4 * ROWS);
            }
        for (int64_t block = n; block < next; block++, from += ROWS * p->a_row, to += ROWS * p->depth)
            for (int64_t c = k; c < p->depth; c++)
                for (int64_t i = 0; i < ROWS; i++) to[c * ROWS + i] = i < rows ? from[i * p->a_row + c * p->a_col] : 0;
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
                int as_is = reads_directly(p, n);
                const float *a = as_is ? p->a + n * ROWS + k * p->a_col : p->workspace + (n * p->depth + k) * ROWS;
                multiply(cols, depth, a, as_is ? p->a_col : ROWS, from, at, sums);
                for (int64_t i = 0; i < smaller(ROWS, p->rows - n * ROWS); i++) {
                    float *to = p->c + (n * ROWS + i) * p->cols + col, *row = (float *)sums[i];
                    if (k)
                        for (int64_t q = 0; q < cols; q++) to[q] += row[q];
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
