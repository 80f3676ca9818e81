// Cross-entropy of softmax, and the gradient of the logits: in doubles, since there is little of it. REAL is what
// logits, probabilities and slopes are stored as, NUMBER what losses are; LABEL is the labels' type.
#ifndef LABEL
#define LABEL long long
#endif

static __device__ inline double larger_of(double a, double b) { return b > a || b != b ? b : a; }  // NaN spreads

// The largest of one number of every `apart`-th thread of a block, counted from each.
static __device__ double block_max(double x, int apart)
{
    __shared__ double most[1024];
    most[threadIdx.x] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half >= apart; half /= 2) {
        if ((int)threadIdx.x < half) most[threadIdx.x] = larger_of(most[threadIdx.x], most[threadIdx.x + half]);
        __syncthreads();
    }
    const double found = most[threadIdx.x % apart];
    __syncthreads();
    return found;
}

// The negative logarithm of a class's probability: of finite logits it is a number.
static __device__ double cost(double logit, double most, double log_sum)
{
    const double most_stored = sizeof(NUMBER) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308;
    double distance = logit - most;
    if (distance < -most_stored && logit >= -most_stored && most <= most_stored) distance = -most_stored;
    return log_sum - distance;
}

// logits (rows, classes), labels (rows) or, where those are null, targets (rows, classes) -> slopes, the gradient of
// `share` times a row's loss; losses, each row's own; totals, the sums of the blocks' losses; and total, `share` times
// that sum. All but slopes may be null. The share `smoothing` of a row's targets is spread evenly over the classes. A
// block takes `apart` rows at a time, and every `apart`-th of its threads works at the same one. A label out of range
// makes the loss and the row's slopes NaN.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy(const REAL* logits, const LABEL* labels,
                                                                 const REAL* targets, REAL* slopes, NUMBER* losses,
                                                                 double* totals, NUMBER* total, count rows,
                                                                 count classes, count apart, double share,
                                                                 double smoothing)
{
    const double nan = log(-1.0), even = smoothing / classes;
    const int own = (int)threadIdx.x % (int)apart, lane = (int)threadIdx.x / (int)apart;
    const int lanes = (int)blockDim.x / (int)apart;
    double all = 0;
    for (count first = blockIdx.x * apart; first < rows; first += gridDim.x * apart) {
        const count row = first + own < rows ? first + own : rows - 1;  // which is then worked out twice
        const REAL* x = logits + row * classes;
        double most = value(x[0]), sum = 0, mass = 1, loss = 0;
        for (count k = lane; k < classes; k += lanes) most = larger_of(most, value(x[k]));
        most = block_max(most, (int)apart);
        for (count k = lane; k < classes; k += lanes) sum += exp(value(x[k]) - most);
        sum = block_sum(sum, (int)apart);
        const double log_sum = log(sum);
        const long long label = labels ? (long long)labels[row] : 0;
        const bool known = label >= 0 && label < classes;
        const auto q = [=](count k) {
            const double target = targets ? (double)value(targets[row * classes + k]) : k == label ? 1 : 0;
            return (1 - smoothing) * target + even;
        };
        if (targets || smoothing != 0) {  // else a row's first thread finds the loss alone
            mass = 0;
            for (count k = lane; k < classes; k += lanes) {
                const double part = q(k);
                mass += part;
                if (part != 0) loss += part * cost(value(x[k]), most, log_sum);  // 0 log 0 counts as 0
            }
            mass = block_sum(mass, (int)apart);
            loss = block_sum(loss, (int)apart);
        } else if (known && !lane) {
            loss = cost(value(x[label]), most, log_sum);
        }
        if (first + own >= rows) continue;
        for (count k = lane; k < classes; k += lanes) {
            const double slope = exp(value(x[k]) - most) / sum * mass - q(k);
            store(slopes + row * classes + k, (NUMBER)(known ? slope * share : nan));
        }
        if (lane) continue;
        if (!known) loss = nan;
        if (losses) losses[row] = (NUMBER)loss;
        all += loss;
    }
    all = block_sum(all);
    if (threadIdx.x) return;
    if (totals) totals[blockIdx.x] = all;
    if (total) *total = (NUMBER)(all * share);
}

// totals (many) -> total, `share` times their sum
extern "C" __global__ void __launch_bounds__(256) cross_entropy_total(const double* totals, NUMBER* total, count many,
                                                                      double share)
{
    double sum = 0;
    for (count k = threadIdx.x; k < many; k += blockDim.x) sum += totals[k];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *total = (NUMBER)(sum * share);
}
