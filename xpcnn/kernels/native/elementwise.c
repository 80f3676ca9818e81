/* Passes over arrays, in as many shares as there are threads. */
#include "common.h"

#include <math.h>

typedef struct {
    const float *a, *b, *v, *w;
    const uint8_t *mask;
    float *y, *new_v, *new_w;
    uint8_t *active;
    int64_t count;
    double numbers[8];
} Pass;

#define PASS(NAME, BODY) \
    static void NAME##_share(void *job, int share, int shares) { \
        Pass p = *(const Pass *)job; \
        const double *of = p.numbers; \
        const float n[8] = {of[0], of[1], of[2], of[3], of[4], of[5], of[6], of[7]}; \
        (void)n; \
        for (int64_t i = first_of(p.count, share, shares), end = first_of(p.count, share + 1, shares); i < end; i++) { BODY; } \
    } \
    EXPORT void NAME(const Pass *p, int shares) { in_shares(NAME##_share, (void *)p, shares); }

PASS(add, p.y[i] = p.a[i] + p.b[i])
PASS(relu_forward, float v = p.a[i] <= 0 ? 0 : p.a[i]; p.y[i] = v; p.active[i] = v > 0)
PASS(clip, float v = n[0] * p.a[i] + n[1]; v = v < n[2] ? n[2] : v; p.y[i] = v > n[3] ? n[3] : v)
PASS(hard_swish, float v = p.a[i] + 3; v = v < 0 ? 0 : v; p.y[i] = p.a[i] * ((v > 6 ? 6 : v) / 6))
PASS(relu_backward, p.y[i] = p.mask[i] ? p.a[i] : 0)

/* Optimizers: parameter a, gradient b, moments v and w. xpcnn/optim has their formulas. The second of two kinds adds
   the parameter times the number at a place to the gradient: weight decay. */
#define BOTH(NAME, PLACE, BODY) \
    PASS(NAME, float g = p.b[i]; BODY) \
    PASS(NAME##_decayed, float g = p.b[i] + n[PLACE] * p.a[i]; BODY)
#define MOMENTS_OF_ADAM \
    float m = n[1] * p.v[i] + n[2] * p.b[i]; float v = n[3] * p.w[i] + n[4] * (p.b[i] * p.b[i]); \
    p.new_v[i] = m; p.new_w[i] = v

BOTH(sgd, 1, p.y[i] = p.a[i] - n[0] * g)
BOTH(momentum, 2, float v = n[1] * p.v[i] + g; p.new_v[i] = v; p.y[i] = p.a[i] - n[0] * v)
BOTH(nesterov, 2, float v = n[1] * p.v[i] + g; p.new_v[i] = v; p.y[i] = p.a[i] - n[0] * (g + n[1] * v))
BOTH(rmsprop, 4, float s = n[1] * p.v[i] + n[2] * (g * g); p.new_v[i] = s; p.y[i] = p.a[i] - n[0] * g / (sqrtf(s) + n[3]))
PASS(average, p.y[i] = p.a[i] + n[0] * (p.b[i] - p.a[i]))
PASS(adagrad, float h = p.v[i] + p.b[i] * p.b[i]; p.new_v[i] = h; p.y[i] = p.a[i] - n[0] * p.b[i] / (sqrtf(h) + n[1]))
PASS(adam, MOMENTS_OF_ADAM; p.y[i] = p.a[i] - n[0] * m / (n[5] * sqrtf(v) + n[6]))
PASS(adamw, MOMENTS_OF_ADAM; p.y[i] = p.a[i] - (n[7] * p.a[i] + n[0] * m / (n[5] * sqrtf(v) + n[6])))
