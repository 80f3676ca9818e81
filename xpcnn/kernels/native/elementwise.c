/* Passes over arrays, in as many shares as there are threads. */
#include "common.h"

#include <math.h>

typedef struct {
    const float *a, *b, *v, *w;
    const uint8_t *mask;
    float *y, *new_v, *new_w;
    uint8_t *active;
    int64_t count;
    double numbers[7];
} Pass;

#define PASS(NAME, BODY) \
    static void NAME##_share(void *job, int share, int shares) { \
        Pass p = *(const Pass *)job; \
        const float n[7] = {p.numbers[0], p.numbers[1], p.numbers[2], p.numbers[3], p.numbers[4], p.numbers[5], p.numbers[6]}; \
        (void)n; \
        for (int64_t i = first_of(p.count, share, shares), end = first_of(p.count, share + 1, shares); i < end; i++) { BODY; } \
    } \
    EXPORT void NAME(const Pass *p, int shares) { in_shares(NAME##_share, (void *)p, shares); }

PASS(add, p.y[i] = p.a[i] + p.b[i])
PASS(relu_forward, float v = p.a[i] <= 0 ? 0 : p.a[i]; p.y[i] = v; p.active[i] = v > 0)
PASS(relu_backward, p.y[i] = p.mask[i] ? p.a[i] : 0)

/* Optimizers: parameter a, gradient b, moments v and w. xpcnn/optim has their formulas. */
PASS(sgd, p.y[i] = p.a[i] - n[0] * p.b[i])
PASS(momentum, float v = n[1] * p.v[i] + p.b[i]; p.new_v[i] = v; p.y[i] = p.a[i] - n[0] * v)
PASS(nesterov, float v = n[1] * p.v[i] + p.b[i]; p.new_v[i] = v; p.y[i] = p.a[i] - n[0] * (p.b[i] + n[1] * v))
PASS(adagrad, float h = p.v[i] + p.b[i] * p.b[i]; p.new_v[i] = h; p.y[i] = p.a[i] - n[0] * p.b[i] / (sqrtf(h) + n[1]))
PASS(adam, float m = n[1] * p.v[i] + n[2] * p.b[i]; float v = n[3] * p.w[i] + n[4] * (p.b[i] * p.b[i]);
     p.new_v[i] = m; p.new_w[i] = v; p.y[i] = p.a[i] - n[0] * m / (n[5] * sqrtf(v) + n[6]))
