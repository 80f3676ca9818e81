/* Depthwise convolution: LANES channels side by side, so that a vector holds one pixel of each. */
#include "common.h"

typedef struct {
    int64_t images, channels, height, width, rows, cols;
    int64_t kernel_rows, kernel_cols, row_stride, col_stride, row_dilation, col_dilation;
    int64_t top, left; /* padding before */
} Depthwise;

typedef struct {
    const Depthwise *d;
    const float *x, *w, *bias, *dy;
    float *y, *dx, *workspace;
    int64_t each, padded_rows, padded_cols;
} Job;

static Job job_of(const Depthwise *d) {
    Job j = {.d = d};
    j.padded_rows = larger(d->top + d->height, (d->rows - 1) * d->row_stride + (d->kernel_rows - 1) * d->row_dilation + 1);
    j.padded_cols = larger(d->left + d->width, (d->cols - 1) * d->col_stride + (d->kernel_cols - 1) * d->col_dilation + 1);
    int64_t taps = d->kernel_rows * d->kernel_cols, area = larger(d->height * d->width, d->rows * d->cols);
    j.each = LANES * (2 * j.padded_rows * j.padded_cols + area + d->rows * d->cols + taps)
           + round_up(d->channels, LANES) * (taps + 1);
    return j;
}

static int64_t padded_floats(const Job *j) { return LANES * j->padded_rows * j->padded_cols; }

/* Copy `count` channels, pixel by pixel, into the middle of a padded image. */
static void stage(const Job *j, const float *x, int64_t count, float *flat, float *padded) {
    const Depthwise *d = j->d;
    transpose(x, d->height * d->width, count, flat, LANES, d->height * d->width);
    for (int64_t r = 0; r < d->height; r++)
        memcpy(padded + ((r + d->top) * j->padded_cols + d->left) * LANES, flat + r * d->width * LANES, 4 * LANES * d->width);
}

static void stage_kernel(const Job *j, int64_t channel, int64_t count, float *to) {
    int64_t taps = j->d->kernel_rows * j->d->kernel_cols;
    for (int64_t t = 0; t < taps; t++)
        for (int64_t i = 0; i < LANES; i++) to[t * LANES + i] = i < count ? j->w[(channel + i) * taps + t] : 0;
}

/* `wide` windows next to each other. */
INLINE void convolve(const Job *j, int wide, const float *from, const float *w, vec bias, float *y) {
    const Depthwise *d = j->d;
    vec sums[8];
    for (int i = 0; i < wide; i++) sums[i] = bias;
    for (int64_t a = 0; a < d->kernel_rows; a++)
        for (int64_t b = 0; b < d->kernel_cols; b++, w += LANES) {
            const float *x = from + (a * d->row_dilation * j->padded_cols + b * d->col_dilation) * LANES;
            vec k = load(w);
#pragma GCC unroll 8
            for (int i = 0; i < wide; i++) sums[i] += k * load(x + i * d->col_stride * LANES);
        }
    for (int i = 0; i < wide; i++) store(y + i * LANES, sums[i]);
}

/* What one share of (channel block, image) pairs is; images go fastest, so that a kernel is laid out once. */
#define FOR_EACH_UNIT(j, share, shares) \
    int64_t blocks = (j->d->channels + LANES - 1) / LANES, first = first_of(blocks * j->d->images, share, shares), \
            end = first_of(blocks * j->d->images, share + 1, shares); \
    for (int64_t n = first; n < end; n++)

static void forward_share(void *job, int share, int shares) {
    const Job *j = job;
    const Depthwise *d = j->d;
    int64_t area = d->height * d->width, windows = d->rows * d->cols;
    float *padded = j->workspace + j->each * share, *flat = padded + padded_floats(j), *w = flat + LANES * larger(area, windows);
    memset(padded, 0, 4 * padded_floats(j));
    FOR_EACH_UNIT(j, share, shares) {
        int64_t channel = n / d->images * LANES, image = n % d->images, count = smaller(LANES, d->channels - channel);
        if (image == 0 || n == first) stage_kernel(j, channel, count, w);
        vec bias = {0};
        for (int64_t i = 0; j->bias && i < count; i++) bias[i] = j->bias[channel + i];
        stage(j, j->x + (image * d->channels + channel) * area, count, flat, padded);
        for (int64_t r = 0; r < d->rows; r++) {
            const float *from = padded + r * d->row_stride * j->padded_cols * LANES;
            float *to = flat + r * d->cols * LANES;
            int64_t q = 0;
            for (; q + 8 <= d->cols; q += 8) convolve(j, 8, from + q * d->col_stride * LANES, w, bias, to + q * LANES);
            for (; q + 4 <= d->cols; q += 4) convolve(j, 4, from + q * d->col_stride * LANES, w, bias, to + q * LANES);
            for (; q < d->cols; q++) convolve(j, 1, from + q * d->col_stride * LANES, w, bias, to + q * LANES);
        }
        transpose_into(flat, LANES, windows, j->y + (image * d->channels + channel) * windows, windows, count);
    }
}

static void backward_share(void *job, int share, int shares) {
    const Job *j = job;
    const Depthwise *d = j->d;
    int64_t area = d->height * d->width, windows = d->rows * d->cols, taps = d->kernel_rows * d->kernel_cols;
    float *sums = j->workspace + j->each * share, *padded = sums + round_up(d->channels, LANES) * (taps + 1);
    float *dx = padded + padded_floats(j), *flat = dx + padded_floats(j), *w = flat + LANES * larger(area, windows), *g = w + LANES * taps;
    memset(sums, 0, 4 * (padded + padded_floats(j) - sums));
    FOR_EACH_UNIT(j, share, shares) {
        int64_t channel = n / d->images * LANES, image = n % d->images, count = smaller(LANES, d->channels - channel);
        if (image == 0 || n == first) stage_kernel(j, channel, count, w);
        stage(j, j->x + (image * d->channels + channel) * area, count, flat, padded);
        transpose(j->dy + (image * d->channels + channel) * windows, windows, count, g, LANES, windows);
        if (j->dx) memset(dx, 0, 4 * padded_floats(j));
        vec dbias[4] = {{0}};
        for (int64_t p = 0; p < windows; p++) dbias[p % 4] += load(g + p * LANES);
        float *to = sums + channel * (taps + 1);
        store(to + taps * LANES, load(to + taps * LANES) + (dbias[0] + dbias[1]) + (dbias[2] + dbias[3]));
        for (int64_t t = 0; t < taps; t++) {
            vec sum[2] = {{0}}, k = load(w + t * LANES);
            for (int64_t r = 0; r < d->rows; r++) {
                int64_t start = ((r * d->row_stride + t / d->kernel_cols * d->row_dilation) * j->padded_cols
                                 + t % d->kernel_cols * d->col_dilation) * LANES;
                const float *x = padded + start, *dy = g + r * d->cols * LANES;
                float *back = dx + start;
                for (int64_t q = 0; q < d->cols; q++) sum[q % 2] += load(dy + q * LANES) * load(x + q * d->col_stride * LANES);
                if (j->dx)
                    for (int64_t q = 0; q < d->cols; q++) {
                        float *at = back + q * d->col_stride * LANES;
                        store(at, load(at) + k * load(dy + q * LANES));
                    }
            }
            store(to + t * LANES, load(to + t * LANES) + sum[0] + sum[1]);
        }
        if (!j->dx) continue;
        for (int64_t r = 0; r < d->height; r++)
            memcpy(flat + r * d->width * LANES, dx + ((r + d->top) * j->padded_cols + d->left) * LANES, 4 * LANES * d->width);
        transpose_into(flat, LANES, area, j->dx + (image * d->channels + channel) * area, area, count);
    }
}

/* Floats of workspace that both functions need. */
EXPORT int64_t depthwise_workspace(const Depthwise *d, int shares) { return shares * job_of(d).each; }

EXPORT void depthwise_forward(const Depthwise *d, const float *x, const float *w, const float *bias, float *y, float *workspace, int shares) {
    Job j = job_of(d);
    j.x = x, j.w = w, j.bias = bias, j.y = y, j.workspace = workspace;
    in_shares(forward_share, &j, shares);
}

/* dw, dbias and, unless NULL, dx. */
EXPORT void depthwise_backward(const Depthwise *d, const float *x, const float *w, const float *dy, float *dx, float *dw, float *dbias, float *workspace, int shares) {
    Job j = job_of(d);
    int64_t taps = d->kernel_rows * d->kernel_cols;
    j.x = x, j.w = w, j.dy = dy, j.dx = dx, j.workspace = workspace;
    in_shares(backward_share, &j, shares);
    for (int64_t c = 0; c < d->channels; c++)
        for (int64_t t = 0; t <= taps; t++) {
            float sum = 0;
            for (int s = 0; s < shares; s++) /* in the shares' order */
                sum += workspace[s * j.each + c / LANES * LANES * (taps + 1) + t * LANES + c % LANES];
            *(t < taps ? dw + c * taps + t : dbias + c) = sum;
        }
}
