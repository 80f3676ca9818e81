/* Cross-entropy of softmax, and the gradient of the logits: in doubles, since there is little of it. */
#include "common.h"

#include <float.h>
#include <math.h>

/* losses (rows) and slopes (rows x classes) for labels (rows) or, where those are null, targets (rows x classes), of
 * which the share `smoothing` is spread evenly over the classes; `powers` and `q` have room for a row. Returns the
 * first row whose label is out of range, or -1. */
EXPORT int64_t cross_entropy(const float *logits, const int64_t *labels, const float *targets, double smoothing,
                             int64_t rows, int64_t classes, double *powers, double *q, float *losses,
                             float *slopes) {
    for (int64_t r = 0; r < rows; r++, logits += classes, slopes += classes) {
        const int64_t label = labels ? labels[r] : 0;
        if (label < 0 || label >= classes) return r;
        double most = logits[0], sum = 0, mass = 0, loss = 0;
        for (int64_t k = 1; k < classes; k++) most = logits[k] > most || logits[k] != logits[k] ? logits[k] : most;
        for (int64_t k = 0; k < classes; k++) sum += powers[k] = exp(logits[k] - most);
        const double log_sum = log(sum);
        for (int64_t k = 0; k < classes; k++) {
            const double target = labels ? k == label : targets[r * classes + k];
            q[k] = (1.0 - smoothing) * target + smoothing / classes;
            mass += q[k];
            if (q[k] != 0) loss += q[k] * (log_sum - (logits[k] - most)); /* 0 log 0 counts as 0 */
        }
        losses[r] = loss > FLT_MAX && loss <= 2.0 * FLT_MAX ? FLT_MAX : loss; /* of finite logits it is a number */
        for (int64_t k = 0; k < classes; k++) slopes[k] = powers[k] / sum * mass - q[k];
    }
    return -1;
}
