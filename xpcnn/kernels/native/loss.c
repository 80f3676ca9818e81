/* Cross-entropy of softmax for labels, and the gradient of the logits: in doubles, since there is little of it. */
#include "common.h"

#include <float.h>
#include <math.h>

/* losses (rows) and slopes = softmax - onehot (rows x classes); returns the first row whose label is out of range, or
 * -1. */
EXPORT int64_t cross_entropy(const float *logits, const int64_t *labels, int64_t rows, int64_t classes, float *losses, float *slopes) {
    for (int64_t r = 0; r < rows; r++, logits += classes, slopes += classes) {
        if (labels[r] < 0 || labels[r] >= classes) return r;
        double most = logits[0], sum = 0;
        for (int64_t k = 1; k < classes; k++) most = logits[k] > most || logits[k] != logits[k] ? logits[k] : most;
        for (int64_t k = 0; k < classes; k++) sum += exp(logits[k] - most);
        double loss = log(sum) - (logits[labels[r]] - most);
        losses[r] = loss > FLT_MAX && loss <= 2.0 * FLT_MAX ? FLT_MAX : loss; /* of finite logits it is a number */
        for (int64_t k = 0; k < classes; k++) slopes[k] = exp(logits[k] - most) / sum - (k == labels[r]);
    }
    return -1;
}
