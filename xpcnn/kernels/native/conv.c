/* Convolution as a product with columns that are never all there: PANEL windows at a time are laid out in cache.
 *
 * A unit of work is a few images, or a band of rows of one. It is staged: copied with its padding, the pixels that a
 * stride apart see together side by side ("phases"), so that every kernel element reads runs of neighbouring floats.
 * The gradient of the input is a convolution too, of dy with the kernel turned round; the gradient of the kernel
 * multiplies the same panels with dy. With `pool` > 1 windows, ReLU and max pooling follow without the unpooled image.
 */
#include "tile.h"

#define PITCH (PANEL + LANES)  /* floats from row to row of a panel: a copy may write past a row's end */
#define CHUNK 144              /* rows of a panel at a time: they stay in the first-level cache */
#define UNIT_BYTES (1 << 19)   /* of staged images */
#define UNIT_PIXELS (8 * PANEL)

/* A convolution; also what a gradient of one looks like. ctypes mirrors it: 64-bit integers, then pointers. */
typedef struct {
    int64_t images, channels, height, width; /* of the source; channels of one group */
    int64_t groups, filters;                 /* filters of one group */
    int64_t rows, cols;                      /* windows in an image */
    int64_t row_stride, col_stride;          /* between windows, in the source */
    int64_t taps;                            /* kernel elements */
    int64_t weight_filter, weight_channel, weight_group; /* steps in the weights */
    int64_t into_height, into_width;         /* of a plane of y */
    int64_t into_row_stride, into_col_stride, into_row, into_col; /* where in it window (r, c) goes */
    int64_t pool_rows, pool_cols;            /* 1, 1 without pooling; windows are the unpooled ones */
    const int32_t *tap;                      /* taps x (row, column, place in the weights); rows, columns may be < 0 */
} Conv;

typedef struct Places Places;

/* What follows from it. */
typedef struct {
    int64_t top, left;                  /* the first row and column of the source that any tap of window (0, 0) sees */
    int64_t row_phases, col_phases;
    int64_t extra_rows, plane_cols;     /* rows of a staged plane beyond the band's; its columns */
    int64_t images_at_once, band, bands; /* of a unit; rows of windows in a band, a multiple of pool_rows */
    int64_t units;
    int64_t depth, padded_filters;
    int64_t staged, panel, turned, sums; /* floats of workspace for each purpose */
} Plan;

typedef struct { int64_t image, images, row, rows, plane_rows, plane, per_image; } Unit;

static Plan plan_of(const Conv *c, int64_t lanes_of_filters) {
    Plan p = {0};
    int64_t bottom = c->tap[0], right = c->tap[1];
    p.top = bottom, p.left = right;
    for (int64_t t = 0; t < c->taps; t++) {
        p.top = smaller(p.top, c->tap[3 * t]), bottom = larger(bottom, c->tap[3 * t]);
        p.left = smaller(p.left, c->tap[3 * t + 1]), right = larger(right, c->tap[3 * t + 1]);
    }
    p.row_phases = smaller(c->row_stride, bottom - p.top + 1);
    p.col_phases = smaller(c->col_stride, right - p.left + 1);
    p.extra_rows = (bottom - p.top) / c->row_stride;
    p.plane_cols = c->cols + (right - p.left) / c->col_stride;
    int64_t planes = c->channels * p.row_phases * p.col_phases, row_bytes = 4 * planes * p.plane_cols;
    int64_t whole = row_bytes * (c->rows + p.extra_rows);
    p.band = c->rows, p.images_at_once = 1;
    if (whole > 2 * UNIT_BYTES) /* bands: their shared rows are staged twice */
        p.band = smaller(c->rows, round_up(larger(2 * UNIT_BYTES / row_bytes - p.extra_rows, 2 * p.extra_rows + 1), c->pool_rows));
    else
        p.images_at_once = larger(1, smaller(UNIT_BYTES / larger(whole, 1), (UNIT_PIXELS + c->rows * c->cols - 1) / (c->rows * c->cols)));
    p.images_at_once = larger(1, smaller(p.images_at_once, c->images));
    p.bands = (c->rows + p.band - 1) / p.band;
    p.units = p.bands * ((c->images + p.images_at_once - 1) / p.images_at_once);
    p.depth = c->channels * c->taps;
    p.padded_filters = round_up(c->filters, lanes_of_filters);
    int64_t pixels = p.images_at_once * p.band * c->cols;
    p.staged = p.images_at_once * planes * (p.band + p.extra_rows) * p.plane_cols + PANEL;
    p.panel = CHUNK * PITCH;
    p.turned = pixels * p.padded_filters;
    p.sums = round_up(p.depth, 24) * p.padded_filters + p.padded_filters;
    return p;
}

/* Zeros where a tile computes what nobody reads: whatever lies there could be denormal, which takes 100 times as long. */
static void clear(const Plan *p, float *panel, int64_t panel_floats, float *staged) {
    memset(panel, 0, 4 * panel_floats);
    memset(staged + p->staged - PANEL, 0, 4 * PANEL);
}

static Unit unit_of(const Conv *c, const Plan *p, int64_t number) {
    Unit u;
    int64_t group = number / p->bands, groups = p->units / p->bands; /* of images, as equal as can be */
    u.image = first_of(c->images, group, groups);
    u.images = first_of(c->images, group + 1, groups) - u.image;
    u.row = number % p->bands * p->band;
    u.rows = smaller(p->band, c->rows - u.row);
    u.plane_rows = u.rows + p->extra_rows;
    u.plane = u.plane_rows * p->plane_cols;
    u.per_image = c->channels * p->row_phases * p->col_phases * u.plane;
    return u;
}

/* Copy count floats a step apart; may write up to LANES beyond, but reads nothing from `end` on. */
INLINE void copy_row(const float *from, int64_t step, int64_t count, const float *end, float *to) {
    if (step == 1) {
        int64_t i = 0;
        for (; i < count && from + i + LANES <= end; i += LANES) store(to + i, load(from + i));
        for (; i < count; i++) to[i] = from[i];
    } else if (step == 2) {
        for (int64_t i = 0; i < count; i++) to[i] = from[2 * i];
    } else {
        for (int64_t i = 0; i < count; i++) to[i] = from[i * step];
    }
}

/* Copy one channel of the source into its staged planes. */
static void stage_plane(const Conv *c, const Plan *p, const Unit *u, const float *x, const float *end, float *to) {
    for (int64_t pr = 0; pr < p->row_phases; pr++)
        for (int64_t pc = 0; pc < p->col_phases; pc++) {
            int64_t first = p->left + pc; /* column q of the plane is column first + q * stride of the source */
            int64_t before = first < 0 ? (-first + c->col_stride - 1) / c->col_stride : 0;
            int64_t after = first < c->width ? (c->width - 1 - first) / c->col_stride + 1 : 0;
            before = smaller(before, p->plane_cols), after = larger(before, smaller(after, p->plane_cols));
            for (int64_t r = 0; r < u->plane_rows; r++, to += p->plane_cols) {
                int64_t y = (u->row + r) * c->row_stride + p->top + pr;
                int64_t inside = y >= 0 && y < c->height ? after : before;
                for (int64_t q = 0; q < before; q++) to[q] = 0;
                copy_row(x + y * c->width + first + before * c->col_stride, c->col_stride, inside - before, end, to + before);
                for (int64_t q = inside; q < p->plane_cols; q++) to[q] = 0;
            }
        }
}

static void stage(const Conv *c, const Plan *p, const Unit *u, const float *x, int64_t group, float *to) {
    int64_t planes = p->row_phases * p->col_phases * u->plane, area = c->height * c->width;
    const float *end = x + c->images * c->groups * c->channels * area;
    for (int64_t i = 0; i < u->images; i++)
        for (int64_t k = 0; k < c->channels; k++, to += planes) {
            int64_t plane = ((u->image + i) * c->groups + group) * c->channels + k;
            stage_plane(c, p, u, x + plane * area, end, to);
        }
}

/* The gradient of a pooled image, which unpooled is one value at the place of each maximum and zeros. */
typedef struct { const float *dy; const uint8_t *active, *place; } Pooled;

static void stage_pooled(const Conv *c, const Plan *p, const Unit *u, const Pooled *from, float *to) {
    int64_t rows = c->height / c->pool_rows, cols = c->width / c->pool_cols; /* of the pooled image */
    int64_t row_of[256], col_of[256];
    for (int64_t q = 0; q < c->pool_rows * c->pool_cols; q++)
        row_of[q] = q / c->pool_cols - p->top - u->row, col_of[q] = q % c->pool_cols - p->left;
    for (int64_t i = 0; i < u->images * c->channels; i++, to += u->plane) {
        int64_t at = (u->image * c->channels + i) * rows * cols;
        memset(to, 0, 4 * u->plane);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t q = 0; q < cols; q++, at++) {
                int64_t row = r * c->pool_rows + row_of[from->place[at]], col = q * c->pool_cols + col_of[from->place[at]];
                if (from->active[at] && (uint64_t)row < (uint64_t)u->plane_rows && (uint64_t)col < (uint64_t)p->plane_cols)
                    to[row * p->plane_cols + col] = from->dy[at];
            }
    }
}

/* Runs of windows that read neighbouring floats: at most one for each row of windows. */
typedef struct { int64_t at, from, count; } Run;

/* The runs of windows first .. first + count of a unit. */
static int runs_of(const Conv *c, const Plan *p, const Unit *u, int64_t first, int64_t count, Run *runs) {
    int made = 0;
    int64_t image = first / (u->rows * c->cols), row = first / c->cols % u->rows, col = first % c->cols;
    for (int64_t at = 0; at < count;) {
        int64_t length = smaller(c->cols - col, count - at), from = image * u->per_image + row * p->plane_cols + col;
        if (made && runs[made - 1].from + runs[made - 1].count == from)
            runs[made - 1].count += length;
        else
            runs[made++] = (Run){at, from, length};
        at += length, col = 0;
        if (++row == u->rows) row = 0, image++;
    }
    return made;
}

/* Where a window of a unit starts in the staged planes. */
INLINE int64_t window_offset(const Conv *c, const Plan *p, const Unit *u, int64_t window) {
    int64_t image = window / (u->rows * c->cols), rest = window % (u->rows * c->cols);
    return image * u->per_image + rest / c->cols * p->plane_cols + rest % c->cols;
}

/* Where each row of a panel starts in the staged planes. */
static void row_offsets(const Conv *c, const Plan *p, const Unit *u, int32_t *offsets) {
    for (int64_t k = 0; k < c->channels; k++)
        for (int64_t t = 0; t < c->taps; t++) {
            int64_t row = c->tap[3 * t] - p->top, col = c->tap[3 * t + 1] - p->left;
            int64_t phase = row % c->row_stride * p->col_phases + col % c->col_stride;
            int64_t plane = k * p->row_phases * p->col_phases + phase;
            *offsets++ = plane * u->plane + row / c->row_stride * p->plane_cols + col / c->col_stride;
        }
}

typedef struct { int64_t from, to; } Copy;

/* Lay out rows of a panel by `count` copies each, of LANES floats or half as many. A copy may write past its end, where
 * the next one writes later or nothing is. */
INLINE void copy_rows(int count, int halves, const Copy *copies, int64_t depth, const int32_t *offsets, const float *staged, float *panel) {
    for (int64_t k = 0; k < depth; k++, panel += PITCH)
#pragma GCC unroll 8
        for (int i = 0; i < count; i++) {
            const float *from = staged + offsets[k] + copies[i].from;
            if (halves) *(half *)(panel + copies[i].to) = *(const half *)from;
            else store(panel + copies[i].to, load(from));
        }
}

/* Lay out `depth` rows of windows first .. first + count. */
static void fill_panel(const Conv *c, const Plan *p, const Unit *u, const float *staged, const int32_t *offsets, int64_t depth, int64_t first, int64_t count, float *panel) {
    Run runs[PANEL];
    Copy copies[2 * PANEL];
    int made = runs_of(c, p, u, first, count, runs), halves = 1, n = 0;
    for (int r = 0; r < made; r++) halves &= runs[r].count <= LANES / 2;
    for (int r = 0; r < made; r++)
        for (int64_t i = 0; i < runs[r].count; i += halves ? LANES / 2 : LANES)
            copies[n++] = (Copy){runs[r].from + i, runs[r].at + i};
    switch (halves ? -n : n) {
        case 3: copy_rows(3, 0, copies, depth, offsets, staged, panel); break;
        case 4: copy_rows(4, 0, copies, depth, offsets, staged, panel); break;
        case 5: copy_rows(5, 0, copies, depth, offsets, staged, panel); break;
        case -6: copy_rows(6, 1, copies, depth, offsets, staged, panel); break;
        default: copy_rows(n, halves, copies, depth, offsets, staged, panel);
    }
}

/* Filters in blocks of ROWS: (filters / ROWS, channels x taps, ROWS), zeros where there is no filter. */
static void pack_filters(const Conv *c, int64_t group, const float *w, float *to) {
    w += group * c->weight_group;
    for (int64_t f = 0; f < c->filters; f += ROWS)
        for (int64_t k = 0; k < c->channels; k++)
            for (int64_t t = 0; t < c->taps; t++)
                for (int64_t i = 0; i < ROWS; i++)
                    *to++ = f + i < c->filters ? w[(f + i) * c->weight_filter + k * c->weight_channel + c->tap[3 * t + 2]] : 0;
}

typedef struct {
    const Conv *c;
    Plan p;
    const float *x, *bias;
    const Pooled *pooled; /* instead of x */
    const float *filters; /* packed */
    float *y;
    float *workspace;
    int64_t each; /* floats of workspace for a share */
    int64_t group;
    const Places *places; /* with pooling: */
    uint8_t *active, *place;
} Forward;

/* Write the first `count` sums of ROWS filters to where their windows go in y. */
static void put_windows(const Conv *c, const Unit *u, int64_t group, int64_t f, int64_t first, int64_t count, const float *sums, float *y) {
    int64_t plane = c->into_height * c->into_width, filters = smaller(ROWS, c->filters - f);
    int dense = c->into_row_stride == 1 && c->into_col_stride == 1 && c->cols == c->into_width;
    int64_t image = first / (u->rows * c->cols), rest = first % (u->rows * c->cols);
    for (int64_t at = 0; at < count; image++, rest = 0) {
        int64_t length = smaller(count - at, u->rows * c->cols - rest);
        float *to = y + ((u->image + image) * c->groups * c->filters + group * c->filters + f) * plane;
        if (dense) {
            to += (u->row + c->into_row) * c->cols + rest;
            for (int64_t i = 0; i < filters; i++)
                if (length == PANEL) memcpy(to + i * plane, sums + i * PANEL, 4 * PANEL);
                else memcpy(to + i * plane, sums + i * PANEL + at, 4 * length);
        } else
            for (int64_t w = 0; w < length; w++) {
                int64_t row = u->row + (rest + w) / c->cols, col = (rest + w) % c->cols;
                int64_t place = (row * c->into_row_stride + c->into_row) * c->into_width + col * c->into_col_stride + c->into_col;
                for (int64_t i = 0; i < filters; i++) to[i * plane + place] = sums[i * PANEL + at + w];
            }
        at += length;
    }
}

/* The same for places in a staged plane, of which only the first c->cols of each row are windows. */
static void put_places(const Conv *c, const Plan *p, const Unit *u, int64_t group, int64_t f, int64_t image, int64_t first, int64_t count, const float *sums, float *y) {
    int64_t plane = c->into_height * c->into_width, filters = smaller(ROWS, c->filters - f);
    y += ((u->image + image) * c->groups * c->filters + group * c->filters + f) * plane;
    for (int64_t at = 0; at < count;) {
        int64_t row = (first + at) / p->plane_cols, col = (first + at) % p->plane_cols, length = smaller(c->cols - col, count - at);
        float *to = y + ((u->row + row) * c->into_row_stride + c->into_row) * c->into_width + col * c->into_col_stride + c->into_col;
        for (int64_t i = 0; i < filters; i++)
            for (int64_t w = 0; w < length; w++) to[i * plane + w * c->into_col_stride] = sums[i * PANEL + at + w];
        at += p->plane_cols - col;
    }
}

/* Whether to compute every place of a plane, windows or not, rather than lay panels out for a few filters. */
static int computes_all_places(const Conv *c, const Plan *p) { return c->filters <= 2 * ROWS && 2 * p->plane_cols <= 3 * c->cols; }

/* Whether LANES windows in a row always read neighbouring floats, so that nothing need be laid out. */
static int reads_directly(const Conv *c, const Plan *p) {
    return c->cols % LANES == 0 || (p->plane_cols == c->cols && p->extra_rows == 0 && p->band * c->cols % LANES == 0 && c->rows * c->cols % LANES == 0);
}

/* Whether staging would copy the images as they are. */
static int is_staged(const Conv *c, const Plan *p) {
    return c->taps == 1 && c->groups == 1 && p->bands == 1 && c->row_stride == 1 && c->col_stride == 1 && p->top == 0
        && p->left == 0 && c->rows == c->height && c->cols == c->width;
}

static void forward_share(void *job, int share, int shares) {
    const Forward *j = job;
    const Conv *c = j->c;
    const Plan *p = &j->p;
    float *panel = j->workspace + j->each * share, *partial = panel + p->panel, *space = partial + p->padded_filters * PANEL;
    int32_t *offsets = (int32_t *)(space + p->staged), *laid_out = offsets + p->depth;
    clear(p, panel, p->panel, space);
    int direct = reads_directly(c, p), all = !direct && computes_all_places(c, p), as_is = direct && !j->pooled && is_staged(c, p);
    for (int64_t k = 0; k < CHUNK; k++) laid_out[k] = k * PITCH;
    for (int64_t n = first_of(p->units, share, shares); n < first_of(p->units, share + 1, shares); n++) {
        Unit u = unit_of(c, p, n);
        const float *staged = as_is ? j->x + u.image * c->channels * c->height * c->width : space;
        if (j->pooled) stage_pooled(c, p, &u, j->pooled, space);
        else if (!as_is) stage(c, p, &u, j->x, j->group, space);
        row_offsets(c, p, &u, offsets);
        int64_t windows = all ? (u.rows - 1) * p->plane_cols + c->cols : u.images * u.rows * c->cols, panels = (windows + PANEL - 1) / PANEL;
        for (int64_t m = 0; m < panels * (all ? u.images : 1); m++) {
            int64_t image = m / panels, first = m % panels * PANEL, count = smaller(PANEL, windows - first);
            const float *b[VECS];
            for (int v = 0; v < VECS; v++)
                b[v] = all ? staged + image * u.per_image + first + v * LANES
                     : direct ? staged + window_offset(c, p, &u, smaller(first + v * LANES, windows - 1)) : panel + v * LANES;
            for (int64_t k = 0; k < p->depth; k += CHUNK) {
                int64_t depth = smaller(CHUNK, p->depth - k);
                if (!direct && !all) fill_panel(c, p, &u, staged, offsets + k, depth, first, count, panel);
                for (int64_t f = 0; f < c->filters; f += ROWS) {
                    vec sums[ROWS][VECS], *before = (vec *)(partial + f * PANEL);
                    multiply(count, depth, j->filters + f * p->depth + k * ROWS, ROWS, b, direct || all ? offsets + k : laid_out, sums);
                    for (int i = 0; k && i < ROWS * VECS; i++) ((vec *)sums)[i] += before[i];
                    if (k + depth < p->depth) {
                        memcpy(before, sums, sizeof sums);
                        continue;
                    }
                    for (int64_t i = 0; j->bias && i < smaller(ROWS, c->filters - f); i++)
                        for (int v = 0; v < VECS; v++) sums[i][v] += j->bias[j->group * c->filters + f + i];
                    if (all) put_places(c, p, &u, j->group, f, image, first, count, (const float *)sums, j->y);
                    else put_windows(c, &u, j->group, f, first, count, (const float *)sums, j->y);
                }
            }
        }
    }
}

static int64_t forward_floats(const Plan *p) { /* of one share */
    return round_up(p->panel + p->padded_filters * PANEL + p->staged + p->depth + CHUNK, LANES);
}

/* Floats of workspace that conv_forward needs. */
EXPORT int64_t conv_forward_workspace(const Conv *c, int shares) {
    Plan p = plan_of(c, ROWS);
    return p.padded_filters * p.depth + shares * forward_floats(&p);
}

/* y = the convolution of x, or of a pooled gradient, with w, plus bias (which may be NULL). */
EXPORT void conv_forward(const Conv *c, const float *x, const Pooled *pooled, const float *w, const float *bias, float *y, float *workspace, int shares) {
    Forward j = {.c = c, .p = plan_of(c, ROWS), .x = x, .pooled = pooled, .bias = bias, .y = y, .filters = workspace};
    j.each = forward_floats(&j.p);
    j.workspace = workspace + j.p.padded_filters * j.p.depth;
    shares = smaller(shares, j.p.units);
    for (j.group = 0; j.group < c->groups; j.group++) {
        pack_filters(c, j.group, w, workspace);
        in_shares(forward_share, &j, shares);
    }
}

/* Convolution, bias, ReLU and max pooling: c describes the pooled windows, whose taps are a patch that all places of a
 * pooling window see together; `tap_of` (places x kernel taps) says which of them a kernel element meets at a place. */
struct Places {
    int64_t places, taps;
    const int32_t *tap_of;
};

static void pooled_share(void *job, int share, int shares) {
    const Forward *j = job;
    const Conv *c = j->c;
    const Plan *p = &j->p;
    const Places *at = j->places;
    int64_t depth = c->channels * at->taps, plane = c->rows * c->cols;
    float *panel = j->workspace + j->each * share, *staged = panel + p->depth * PITCH;
    int32_t *offsets = (int32_t *)(staged + p->staged), *rows = offsets + p->depth;
    for (int64_t q = 0, n = 0; q < at->places; q++)
        for (int64_t k = 0; k < c->channels; k++)
            for (int64_t t = 0; t < at->taps; t++) rows[n++] = (k * c->taps + at->tap_of[q * at->taps + t]) * PITCH;
    const float *b[VECS];
    clear(p, panel, p->depth * PITCH, staged);
    for (int v = 0; v < VECS; v++) b[v] = panel + v * LANES;
    for (int64_t n = first_of(p->units, share, shares); n < first_of(p->units, share + 1, shares); n++) {
        Unit u = unit_of(c, p, n);
        stage(c, p, &u, j->x, 0, staged);
        row_offsets(c, p, &u, offsets);
        int64_t windows = u.images * u.rows * c->cols;
        for (int64_t first = 0; first < windows; first += PANEL) {
            int64_t count = smaller(PANEL, windows - first);
            fill_panel(c, p, &u, staged, offsets, p->depth, first, count, panel);
            for (int64_t f = 0; f < c->filters; f += ROWS) {
                vec best[ROWS][VECS], sums[ROWS][VECS];
                ivec index[ROWS][VECS] = {{{0}}};
                multiply(count, depth, j->filters + f * depth, ROWS, b, rows, best);
                for (int64_t q = 1; q < at->places; q++) {
                    multiply(count, depth, j->filters + f * depth, ROWS, b, rows + q * depth, sums);
                    for (int i = 0; i < ROWS; i++)
                        for (int v = 0; v < VECS; v++) {
                            vec s = sums[i][v], old = best[i][v];
                            ivec more = s > old; /* NaN stays, and spreads */
                            best[i][v] = choose(more | (s != s), s, old);
                            index[i][v] = (index[i][v] & ~more) | (((ivec){0} + (int32_t)q) & more);
                        }
                }
                for (int64_t i = 0; i < smaller(ROWS, c->filters - f); i++) {
                    float value[PANEL];
                    uint8_t positive[PANEL], place[PANEL];
                    float bias = j->bias ? j->bias[f + i] : 0;
                    for (int v = 0; v < VECS; v++) {
                        vec y = best[i][v] + bias;
                        y = choose(y <= 0, splat(0), y);
                        store(value + v * LANES, y);
                        *(bytes *)(positive + v * LANES) = __builtin_convertvector((y > 0) & 1, bytes);
                        *(bytes *)(place + v * LANES) = __builtin_convertvector(index[i][v], bytes);
                    }
                    int64_t image = first / (u.rows * c->cols), rest = first % (u.rows * c->cols);
                    for (int64_t done = 0; done < count; image++, rest = 0) {
                        int64_t length = smaller(count - done, u.rows * c->cols - rest);
                        int64_t to = ((u.image + image) * c->filters + f + i) * plane + u.row * c->cols + rest;
                        memcpy(j->y + to, value + done, 4 * length);
                        memcpy(j->active + to, positive + done, length);
                        memcpy(j->place + to, place + done, length);
                        done += length;
                    }
                }
            }
        }
    }
}

static int64_t pooled_floats(const Conv *c, const Places *at, const Plan *p) { /* of one share */
    return round_up(p->depth * PITCH + p->staged + p->depth + at->places * c->channels * at->taps, LANES);
}

EXPORT int64_t conv_pool_workspace(const Conv *c, const Places *at, int shares) {
    Plan p = plan_of(c, ROWS);
    return p.padded_filters * c->channels * at->taps + shares * pooled_floats(c, at, &p);
}

EXPORT void conv_pool_forward(const Conv *c, const Places *at, const float *x, const float *w, const float *bias, float *y, uint8_t *active, uint8_t *place, float *workspace, int shares) {
    Forward j = {.c = c, .p = plan_of(c, ROWS), .x = x, .bias = bias, .y = y, .active = active, .place = place, .filters = workspace, .places = at};
    int64_t depth = c->channels * at->taps;
    float *packed = workspace;
    for (int64_t f = 0; f < c->filters; f += ROWS)
        for (int64_t k = 0; k < depth; k++)
            for (int64_t i = 0; i < ROWS; i++) *packed++ = f + i < c->filters ? w[(f + i) * depth + k] : 0;
    j.each = pooled_floats(c, at, &j.p);
    j.workspace = packed;
    in_shares(pooled_share, &j, smaller(shares, j.p.units));
}

/* The gradient of the kernel and of the bias. */
typedef struct {
    const Conv *c;
    Plan p;
    const float *x, *dy;
    const Pooled *pooled; /* instead of dy */
    float *workspace;
    int64_t each, group;
} Gradient;

/* dy of a unit, window by window: (windows, padded filters). */
static void turn_unit(const Conv *c, const Plan *p, const Unit *u, const float *dy, int64_t group, float *to) {
    for (int64_t i = 0; i < u->images; i++, to += u->rows * c->cols * p->padded_filters) {
        const float *from = dy + ((u->image + i) * c->groups + group) * c->filters * c->rows * c->cols;
        transpose(from + u->row * c->cols, c->rows * c->cols, c->filters, to, p->padded_filters, u->rows * c->cols);
    }
}

/* The same from the gradient of the pooled image: at each place of a pooling window, the values whose maximum was there. */
static void turn_pooled_unit(const Conv *c, const Plan *p, const Unit *u, const Pooled *from, float *to, float *space) {
    int64_t all = c->rows / c->pool_rows * (c->cols / c->pool_cols), cols = c->cols / c->pool_cols; /* of the pooled image */
    int64_t rows = u->rows / c->pool_rows, pixels = rows * cols, filters = p->padded_filters;
    float *dy = space, *places = dy + pixels * filters, *codes = places + pixels * filters;
    for (int64_t i = 0; i < u->images; i++, to += u->rows * c->cols * filters) {
        int64_t at = (u->image + i) * c->filters * all + u->row / c->pool_rows * cols;
        for (int64_t f = 0; f < c->filters; f++)
            for (int64_t w = 0; w < pixels; w++)
                codes[f * pixels + w] = from->active[at + f * all + w] ? from->place[at + f * all + w] : -1;
        transpose(from->dy + at, all, c->filters, dy, filters, pixels);
        transpose(codes, pixels, c->filters, places, filters, pixels);
        for (int64_t q = 0; q < c->pool_rows * c->pool_cols; q++)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t w = 0; w < cols; w++) {
                    int64_t row = r * c->pool_rows + q / c->pool_cols, pixel = (r * cols + w) * filters;
                    float *put = to + (row * c->cols + w * c->pool_cols + q % c->pool_cols) * filters;
                    for (int64_t f = 0; f < filters; f += LANES)
                        store(put + f, choose(load(places + pixel + f) == (float)q, load(dy + pixel + f), (vec){0}));
                }
    }
}

/* sums (DEPTHS x NV vectors, a row of `filters` floats each) += products of a panel's rows with dy, window by window. */
#define GATHER(NAME, DEPTHS, NV) \
    static void NAME(int64_t windows, const float *panel, const float *dy, int64_t filters, float *sums) { \
        vec s[DEPTHS][NV]; \
        _Pragma("GCC unroll 24") for (int i = 0; i < DEPTHS; i++) \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) s[i][v] = (vec){0}; \
        for (int64_t w = 0; w < windows; w++, dy += filters) { \
            vec g[NV]; \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) g[v] = load(dy + v * LANES); \
            _Pragma("GCC unroll 24") for (int i = 0; i < DEPTHS; i++) \
                _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) s[i][v] += panel[i * PITCH + w] * g[v]; \
        } \
        _Pragma("GCC unroll 24") for (int i = 0; i < DEPTHS; i++) \
            _Pragma("GCC unroll 2") for (int v = 0; v < NV; v++) { \
                float *to = sums + i * filters + v * LANES; \
                store(to, load(to) + s[i][v]); \
            } \
    }
#if ROWS == 8
#define STEP 4 /* rows: a tile of sums has 6 * STEP vectors, the last ones of a chunk fewer */
GATHER(gather_1x6, 24, 1)
GATHER(gather_1x2, 8, 1)
GATHER(gather_2x3, 12, 2)
GATHER(gather_2x1, 4, 2)
#else
#define STEP 2
GATHER(gather_1x6, 12, 1)
GATHER(gather_1x2, 4, 1)
GATHER(gather_2x3, 6, 2)
GATHER(gather_2x1, 2, 2)
#endif

/* The products of `depth` rows of a panel with all of dy's filters. */
static void gather(int64_t windows, int64_t depth, const float *panel, const float *dy, int64_t filters, float *sums) {
    int64_t f = 0;
    for (; f + 2 * LANES <= filters; f += 2 * LANES) {
        int64_t k = 0;
        for (; k + 3 * STEP <= depth; k += 3 * STEP) gather_2x3(windows, panel + k * PITCH, dy + f, filters, sums + k * filters + f);
        for (; k < depth; k += STEP) gather_2x1(windows, panel + k * PITCH, dy + f, filters, sums + k * filters + f);
    }
    if (f < filters) {
        int64_t k = 0;
        for (; k + 6 * STEP <= depth; k += 6 * STEP) gather_1x6(windows, panel + k * PITCH, dy + f, filters, sums + k * filters + f);
        for (; k < depth; k += 2 * STEP) gather_1x2(windows, panel + k * PITCH, dy + f, filters, sums + k * filters + f);
    }
}

static int64_t turning_floats(const Conv *c, const Plan *p) {
    return 3 * (p->band / c->pool_rows) * (c->cols / c->pool_cols) * p->padded_filters;
}

static void gradient_share(void *job, int share, int shares) {
    const Gradient *j = job;
    const Conv *c = j->c;
    const Plan *p = &j->p;
    float *sums = j->workspace + j->each * share, *dbias = sums + round_up(p->depth, 24) * p->padded_filters;
    float *panel = sums + p->sums, *staged = panel + p->panel, *turned = staged + p->staged;
    int32_t *offsets = (int32_t *)(turned + p->turned + (j->pooled ? turning_floats(c, p) : 0));
    memset(sums, 0, 4 * p->sums);
    clear(p, panel, p->panel, staged);
    for (int64_t n = first_of(p->units, share, shares); n < first_of(p->units, share + 1, shares); n++) {
        Unit u = unit_of(c, p, n);
        stage(c, p, &u, j->x, j->group, staged);
        row_offsets(c, p, &u, offsets);
        if (j->pooled) turn_pooled_unit(c, p, &u, j->pooled, turned, turned + p->turned);
        else turn_unit(c, p, &u, j->dy, j->group, turned);
        int64_t windows = u.images * u.rows * c->cols;
        for (int64_t f = 0; f < p->padded_filters; f += LANES) {
            vec sums[4] = {{0}};
            int64_t w = 0;
            for (; w + 4 <= windows; w += 4)
                for (int i = 0; i < 4; i++) sums[i] += load(turned + (w + i) * p->padded_filters + f);
            for (; w < windows; w++) sums[0] += load(turned + w * p->padded_filters + f);
            store(dbias + f, load(dbias + f) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
        }
        for (int64_t first = 0; first < windows; first += PANEL)
            for (int64_t k = 0; k < p->depth; k += CHUNK) {
                int64_t depth = smaller(CHUNK, p->depth - k), count = smaller(PANEL, windows - first);
                fill_panel(c, p, &u, staged, offsets + k, depth, first, count, panel);
                gather(count, depth, panel, turned + first * p->padded_filters, p->padded_filters, sums + k * p->padded_filters);
            }
    }
}

/* With pooling, all but one value of each pooling window is 0. Only the windows that won are multiplied, each with the
 * lines of its patch: kernel columns that lie side by side in a staged plane, as a vector whose other lanes nobody reads. */
typedef struct { float value; int32_t from; } Winner;

/* sums += value * line over the winners, for R lines; two sums of each, since a product takes its time. */
#define COLLECT(R, V) \
    static void collect_##V##R(const Winner *winners, int64_t count, const float *staged, const int32_t *lines, float *sums) { \
        V s[2][R]; \
        const float *at[R]; \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) s[0][r] = s[1][r] = (V){0}, at[r] = staged + lines[r]; \
        for (int64_t n = 0; n < count; n += 2) /* one more than counts is there, a 0 */ \
            _Pragma("GCC unroll 2") for (int i = 0; i < 2; i++) \
                _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) \
                    s[i][r] += winners[n + i].value * *(const V *)(at[r] + winners[n + i].from); \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) *(V *)(sums + r * LANES) += s[0][r] + s[1][r]; \
    }
#define COLLECT_ALL(V) \
    COLLECT(1, V) COLLECT(2, V) COLLECT(3, V) COLLECT(4, V) COLLECT(5, V) COLLECT(6, V) COLLECT(7, V) COLLECT(8, V)
COLLECT_ALL(vec)
COLLECT_ALL(half)

static void collect(const Winner *winners, int64_t count, const float *staged, const int32_t *lines, int64_t all, int narrow, float *sums) {
    static void (*const with[2][8])(const Winner *, int64_t, const float *, const int32_t *, float *) = {
        {collect_vec1, collect_vec2, collect_vec3, collect_vec4, collect_vec5, collect_vec6, collect_vec7, collect_vec8},
        {collect_half1, collect_half2, collect_half3, collect_half4, collect_half5, collect_half6, collect_half7, collect_half8}};
    int64_t blocks = (all + 7) / 8;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t r = first_of(all, b, blocks), n = first_of(all, b + 1, blocks) - r;
        with[narrow][n - 1](winners, count, staged, lines + r, sums + r * LANES);
    }
}

static int64_t kernel_cols(const Conv *c) { /* taps in the kernel's first row */
    int64_t cols = 1;
    while (cols < c->taps && c->tap[3 * cols] == c->tap[0]) cols++;
    return cols;
}

/* Whether the kernel's columns are neighbours in a staged plane, few enough for a vector, and lines not too many. */
static int collects(const Conv *c, const Plan *p) {
    int64_t cols = kernel_cols(c);
    return p->col_phases == 1 && p->row_phases == 1 && cols <= LANES && (cols == 1 || c->tap[4] - c->tap[1] == 1)
        && c->channels * (c->taps / cols) <= 64;
}

static int64_t winners_of(const Conv *c, const Plan *p, const Unit *u, const Pooled *from, int64_t image, int64_t f, Winner *winners) {
    int64_t cols = c->cols / c->pool_cols, rows = u->rows / c->pool_rows, count = 0;
    int64_t at = (((u->image + image) * c->filters + f) * (c->rows / c->pool_rows) + u->row / c->pool_rows) * cols;
    int32_t place_of[256], step = c->pool_cols;
    for (int64_t q = 0; q < c->pool_rows * c->pool_cols; q++) place_of[q] = q / c->pool_cols * p->plane_cols + q % c->pool_cols;
    for (int64_t r = 0; r < rows; r++, at += cols) {
        const float *dy = from->dy + at;
        const uint8_t *active = from->active + at, *place = from->place + at;
        int32_t start = image * u->per_image + r * c->pool_rows * p->plane_cols;
        for (int64_t q = 0; q < cols; q++, start += step) {
            winners[count] = (Winner){dy[q], start + place_of[place[q]]};
            count += active[q];
        }
    }
    winners[count] = (Winner){0, 0};
    return count;
}

static void collect_share(void *job, int share, int shares) {
    const Gradient *j = job;
    const Conv *c = j->c;
    const Plan *p = &j->p;
    int64_t cols = kernel_cols(c), rows = c->taps / cols, all = c->channels * rows;
    float *sums = j->workspace + j->each * share, *dbias = sums + c->filters * all * LANES, *staged = dbias + c->filters;
    int32_t *lines = (int32_t *)(staged + p->staged);
    Winner *winners = (Winner *)(lines + all);
    memset(sums, 0, 4 * (staged - sums));
    memset(staged + p->staged - PANEL, 0, 4 * PANEL);
    for (int64_t n = first_of(p->units, share, shares); n < first_of(p->units, share + 1, shares); n++) {
        Unit u = unit_of(c, p, n);
        stage(c, p, &u, j->x, 0, staged);
        for (int64_t r = 0; r < all; r++) lines[r] = r / rows * u.plane + (c->tap[3 * (r % rows * cols)] - p->top) * p->plane_cols;
        for (int64_t i = 0; i < u.images; i++)
            for (int64_t f = 0; f < c->filters; f++) {
                int64_t count = winners_of(c, p, &u, j->pooled, i, f, winners);
                float sum[2] = {0};
                for (int64_t w = 0; w < count; w += 2) sum[0] += winners[w].value, sum[1] += winners[w + 1].value;
                dbias[f] += sum[0] + sum[1];
                collect(winners, count, staged, lines, all, cols <= LANES / 2, sums + f * all * LANES);
            }
    }
}

static int64_t collect_floats(const Conv *c, const Plan *p) { /* of one share */
    int64_t all = c->channels * (c->taps / kernel_cols(c)), pooled = p->band / c->pool_rows * (c->cols / c->pool_cols);
    return round_up(c->filters * (all * LANES + 1) + p->staged + all + 2 * (pooled + 2), LANES);
}

static void collect_gradient(Gradient *j, float *dw, float *dbias, int shares) {
    const Conv *c = j->c;
    int64_t cols = kernel_cols(c), rows = c->taps / cols, all = c->channels * rows;
    j->each = collect_floats(c, &j->p);
    shares = smaller(shares, j->p.units);
    in_shares(collect_share, j, shares);
    for (int s = 1; s < shares; s++) /* in the shares' order */
        for (int64_t i = 0; i < c->filters * (all * LANES + 1); i++) j->workspace[i] += j->workspace[s * j->each + i];
    for (int64_t f = 0; f < c->filters; f++) {
        dbias[f] = j->workspace[c->filters * all * LANES + f];
        for (int64_t r = 0; r < all; r++)
            for (int64_t q = 0; q < cols; q++)
                dw[f * c->weight_filter + r / rows * c->weight_channel + c->tap[3 * (r % rows * cols + q) + 2]] =
                    j->workspace[(f * all + r) * LANES + q];
    }
}

static int64_t gradient_floats(const Conv *c, const Plan *p) { /* of one share */
    return round_up(p->sums + p->staged + p->panel + p->turned + turning_floats(c, p) + p->depth, LANES);
}

EXPORT int64_t conv_gradient_workspace(const Conv *c, int shares) {
    Plan p = plan_of(c, LANES);
    return shares * larger(gradient_floats(c, &p), collects(c, &p) ? collect_floats(c, &p) : 0);
}

/* dw (as w) and dbias (groups x filters) from x and dy, or from the gradient of the pooled image. */
EXPORT void conv_gradient(const Conv *c, const float *x, const float *dy, const Pooled *pooled, float *dw, float *dbias, float *workspace, int shares) {
    Gradient j = {.c = c, .p = plan_of(c, LANES), .x = x, .dy = dy, .pooled = pooled, .workspace = workspace};
    if (pooled && collects(c, &j.p)) {
        collect_gradient(&j, dw, dbias, shares);
        return;
    }
    j.each = gradient_floats(c, &j.p);
    shares = smaller(shares, j.p.units);
    for (j.group = 0; j.group < c->groups; j.group++) {
        in_shares(gradient_share, &j, shares);
        for (int s = 1; s < shares; s++) /* in the shares' order */
            for (int64_t i = 0; i < j.p.sums; i++) workspace[i] += workspace[s * j.each + i];
        const float *sums = workspace, *dbias_sums = sums + round_up(j.p.depth, 24) * j.p.padded_filters;
        for (int64_t f = 0; f < c->filters; f++) {
            float *to = dw + j.group * c->weight_group + f * c->weight_filter;
            for (int64_t k = 0; k < c->channels; k++)
                for (int64_t t = 0; t < c->taps; t++)
                    to[k * c->weight_channel + c->tap[3 * t + 2]] = sums[(k * c->taps + t) * j.p.padded_filters + f];
            dbias[j.group * c->filters + f] = dbias_sums[f];
        }
    }
}
