/* Batch normalisation of images (N, C, ...) in training, with or without ReLU after it: a channel at a time, which
 * stays in cache while its mean, its variance and its values are computed. */
#include "common.h"

#include <math.h>

typedef struct {
    int64_t images, channels, area, rectified; /* y is held between 0 and `most` */
    double eps, most;
    const float *x, *gamma, *beta, *dy; /* gamma and beta may be NULL: ones and zeros */
    float *mean, *var, *scale;          /* of each channel; var is the biased one, scale is 1 / sqrt(var + eps) */
    float *y, *dx, *dgamma, *dbeta;
} Norm;

/* Loops over part of a plane in vectors, then what is left. */
#define BETWEEN(from, to, VECTOR, SCALAR) \
    do { \
        int64_t i = from; \
        for (; i + LANES <= to; i += LANES) { VECTOR; } \
        for (; i < to; i++) { SCALAR; } \
    } while (0)
#define OVER(area, VECTOR, SCALAR) BETWEEN(0, area, VECTOR, SCALAR)

#define PIECE 256 /* values that are added up in floats before the sum goes on in doubles */

/* Where in a channel: image k, from `from` up to `to`. */
typedef struct { int64_t k, from, to; } Part;

/* Go on to the next part of at most PIECE values: whole planes, or pieces of one. */
INLINE Part next_part(const Norm *n, Part p) {
    if (p.to == n->area) p.k++, p.to = 0;
    return (Part){p.k, p.to, smaller(n->area, p.to + PIECE)};
}
#define FIRST_PART(n) ((Part){0, 0, smaller((n)->area, PIECE)})

static void forward_share(void *job, int share, int shares) {
    const Norm *n = job;
    int64_t area = n->area, step = n->channels * area;
    double count = (double)n->images * area;
    for (int64_t c = first_of(n->channels, share, shares); c < first_of(n->channels, share + 1, shares); c++) {
        const float *x = n->x + c * area;
        double sum = 0, squares = 0;
        for (Part p = FIRST_PART(n); p.k < n->images;) {
            vec s = {0};
            float rest = 0;
            for (int64_t left = PIECE; left > 0 && p.k < n->images; left -= n->area, p = next_part(n, p))
                BETWEEN(p.from, p.to, s += load(x + p.k * step + i), rest += x[p.k * step + i]);
            sum += total(s) + rest;
        }
        float mean = n->mean[c] = sum / count;
        for (Part p = FIRST_PART(n); p.k < n->images;) {
            vec s = {0};
            float rest = 0;
            for (int64_t left = PIECE; left > 0 && p.k < n->images; left -= n->area, p = next_part(n, p))
                BETWEEN(p.from, p.to, vec d = load(x + p.k * step + i) - mean; s += d * d, float d = x[p.k * step + i] - mean; rest += d * d);
            squares += total(s) + rest;
        }
        n->var[c] = squares / count;
        n->scale[c] = 1 / sqrt((double)n->var[c] + n->eps);
        float a = n->scale[c] * (n->gamma ? n->gamma[c] : 1), b = n->beta ? n->beta[c] : 0, most = n->most;
        float *y = n->y + c * area;
        for (int64_t k = 0; k < n->images; k++, x += step, y += step)
            if (n->rectified) /* NaN stays */
                OVER(area, vec v = (load(x + i) - mean) * a + b; v = choose(v <= 0, (vec){0}, v); store(y + i, choose(v > most, splat(most), v)),
                     float v = (x[i] - mean) * a + b; v = v <= 0 ? 0 : v; y[i] = v > most ? most : v);
            else
                OVER(area, store(y + i, (load(x + i) - mean) * a + b), y[i] = (x[i] - mean) * a + b);
    }
}

static void backward_share(void *job, int share, int shares) {
    const Norm *n = job;
    int64_t area = n->area, step = n->channels * area;
    double count = (double)n->images * area;
    for (int64_t c = first_of(n->channels, share, shares); c < first_of(n->channels, share + 1, shares); c++) {
        float mean = n->mean[c], scale = n->scale[c], gamma = n->gamma ? n->gamma[c] : 1;
        float a = scale * gamma, b = n->beta ? n->beta[c] : 0, most = n->most;
        double sum = 0, products = 0; /* of the gradient; of it and the normalised x */
        const float *x = n->x + c * area, *dy = n->dy + c * area;
        float *dx = n->dx + c * area;
        for (Part q = FIRST_PART(n); q.k < n->images;) {
            vec s = {0}, p = {0};
            float s_rest = 0, p_rest = 0;
            for (int64_t left = PIECE; left > 0 && q.k < n->images; left -= n->area, q = next_part(n, q)) {
                const float *from = x + q.k * step, *g = dy + q.k * step;
                BETWEEN(q.from, q.to, vec d = load(from + i) - mean; vec v = load(g + i); if (n->rectified) v = choose((d * a + b > 0) & (d * a + b < most), v, (vec){0}); s += v; p += v * d,
                        float d = from[i] - mean; float v = n->rectified && !(d * a + b > 0 && d * a + b < most) ? 0 : g[i]; s_rest += v; p_rest += v * d);
            }
            sum += total(s) + s_rest, products += total(p) + p_rest;
        }
        n->dbeta[c] = sum, n->dgamma[c] = products * scale;
        float shift = sum / count, slope = products / count * scale * scale;
        for (int64_t k = 0; k < n->images; k++, x += step, dy += step, dx += step)
            OVER(area, vec d = load(x + i) - mean; vec v = load(dy + i); if (n->rectified) v = choose((d * a + b > 0) & (d * a + b < most), v, (vec){0}); store(dx + i, (v - shift - d * slope) * a),
                 float d = x[i] - mean; float v = n->rectified && !(d * a + b > 0 && d * a + b < most) ? 0 : dy[i]; dx[i] = (v - shift - d * slope) * a);
    }
}

EXPORT void norm_forward(const Norm *n, int shares) { in_shares(forward_share, (void *)n, smaller(shares, n->channels)); }
EXPORT void norm_backward(const Norm *n, int shares) { in_shares(backward_share, (void *)n, smaller(shares, n->channels)); }

/* In prediction: filters and biases of a convolution that takes in the normalisation after it. bias may be NULL. */
typedef struct {
    int64_t filters, each; /* weights of a filter */
    double eps;
    const float *weight, *bias, *gamma, *beta, *mean, *var;
    float *new_weight, *new_bias;
} Fold;

EXPORT void fold_norm(const Fold *n) {
    for (int64_t f = 0; f < n->filters; f++) {
        float scale = n->gamma[f] / sqrtf(n->var[f] + (float)n->eps), bias = n->bias ? n->bias[f] : 0;
        const float *from = n->weight + f * n->each;
        float *to = n->new_weight + f * n->each;
        for (int64_t i = 0; i < n->each; i++) to[i] = from[i] * scale;
        n->new_bias[f] = n->beta[f] + scale * (bias - n->mean[f]);
    }
}
