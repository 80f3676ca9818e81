// Cross-entropy of softmax for labels, and the gradient of the logits: in doubles, since there is little of it. REAL is
// what logits and slopes are stored as, NUMBER what losses are; LABEL is the labels' type.
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

// logits (rows, classes), labels (rows) -> slopes, the gradient of `share` times a row's loss; losses, each row's own;
// totals, the sums of the blocks' losses; and total, `share` times that sum. All but slopes may be null. A block takes
// `apart` rows at a time, and every `apart`-th of its threads works at the same one. A label out of range makes the
// loss and the row's slopes NaN.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy(const REAL* logits, const LABEL* labels, REAL* slopes,
                                                                 NUMBER* losses, double* totals, NUMBER* total,
                                                                 count rows, count classes, count apart, double share)
{
    const double nan = log(-1.0), most_stored = sizeof(NUMBER) == 4 ? 3.4028234663852886e38 : 1.7976931348623157e308;
    const int own = (int)threadIdx.x % (int)apart, lane = (int)threadIdx.x / (int)apart;
    const int lanes = (int)blockDim.x / (int)apart;
    double all = 0;
    for (count first = blockIdx.x * apart; first < rows; first += gridDim.x * apart) {
        const count row = first + own < rows ? first + own : rows - 1;  // which is then worked out twice
        const REAL* x = logits + row * classes;
        double most = value(x[0]), sum = 0;
        for (count k = lane; k < classes; k += lanes) most = larger_of(most, value(x[k]));
        most = block_max(most, (int)apart);
        for (count k = lane; k < classes; k += lanes) sum += exp(value(x[k]) - most);
        sum = block_sum(sum, (int)apart);
        if (first + own >= rows) continue;
        const long long label = (long long)labels[row];
        const bool known = label >= 0 && label < classes;
        for (count k = lane; k < classes; k += lanes) {
            const double slope = exp(value(x[k]) - most) / sum - (k == label ? 1 : 0);
            store(slopes + row * classes + k, (NUMBER)(known ? slope * share : nan));
        }
        if (lane) continue;
        const double logit = known ? (double)value(x[label]) : nan;
        double distance = logit - most;
        if (distance < -most_stored && logit >= -most_stored && most <= most_stored) distance = -most_stored;
        const double loss = log(sum) - distance;  // of finite logits it is a number
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
