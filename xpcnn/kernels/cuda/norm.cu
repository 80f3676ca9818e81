// Batch normalisation: y = (x - mean) * scale * gamma + beta, held between 0 and `most` where it is rectified, and its
// gradient. A channel's values are split among blocks of THREADS threads; what each finds out of its part goes to
// `parts`, which every block of the next kernel puts together for itself, in one order.
//
// REAL is what x, y and their gradients are stored as, NUMBER what is computed in and what all that there is one of per
// channel is stored as; INDEX counts elements. Values are read in packs of WIDE. Of images (N, C, P) a block has one
// channel, whose planes are `stride` elements apart. If LAST, channels lie side by side, (N, P, C): a pack holds WIDE
// of them, `apart` neighbouring threads have a pack each of the same pixel, and a plane is one pixel's.
#ifndef WIDE
#define WIDE 4
#define LAST 0
#endif
#define THREADS 256
#define AT_ONCE (WIDE > 4 ? 2 : 4)  // packs that a thread has under way
#define COLUMNS (LAST ? WIDE : 1)  // channels of a thread
#define MOST_CHANNELS 128  // of a block

struct alignas(sizeof(REAL) * WIDE) Pack { REAL at[WIDE]; };

static __device__ inline bool is_aligned(const void* p) { return (unsigned long long)p % sizeof(Pack) == 0; }

static __device__ inline void load(const REAL* from, bool aligned, NUMBER* to)
{
    Pack pack;
    if (aligned) pack = *(const Pack*)from;
    else for (int w = 0; w < WIDE; w++) pack.at[w] = from[w];
    for (int w = 0; w < WIDE; w++) to[w] = value(pack.at[w]);
}

static __device__ inline void save(REAL* to, bool aligned, const NUMBER* from)
{
    Pack pack;
    for (int w = 0; w < WIDE; w++) store(pack.at + w, from[w]);
    if (aligned) *(Pack*)to = pack;
    else for (int w = 0; w < WIDE; w++) to[w] = pack.at[w];
}

// A thread's way through the packs of its channels, `step` of them at a time.
struct Walk {
    int channel;               // the first of the thread's
    int split;                 // which part of its channels this block has
    INDEX at;                  // where the next pack begins
    INDEX next, end, step;     // its number among the channel's packs
    INDEX inside, plane, wrap; // its number within its plane; packs of a plane; elements from a plane's end to the next
    INDEX over, jump;          // what a step adds to `inside` and to `at`

    __device__ Walk(count channels, count apart, count packs, count plane_, count stride, count splits)
    {
        const int groups = (int)((channels + apart * COLUMNS - 1) / (apart * COLUMNS));
        split = (int)blockIdx.x / groups;
        channel = (((int)blockIdx.x % groups) * (int)apart + (int)threadIdx.x % (int)apart) * COLUMNS;
        plane = (INDEX)plane_;
        step = (int)(blockDim.x / apart);
        next = (INDEX)(packs * split / splits) + (int)(threadIdx.x / apart);
        end = channel < channels ? (INDEX)(packs * (split + 1) / splits) : 0;
        inside = next % plane;
        wrap = (INDEX)stride - plane * WIDE;
        over = step % plane;
        jump = step / plane * (INDEX)stride + over * WIDE;
        at = channel * (LAST ? 1 : plane * WIDE) + next / plane * (INDEX)stride + inside * WIDE;
    }

    __device__ bool has(int packs) const { return next + (packs - 1) * step < end; }

    __device__ void go_on()
    {
        next += step;
        at += jump;
        inside += over;
        if (inside >= plane) { inside -= plane; at += wrap; }
    }
};

// Values so far: how many, the mean of what they are above the pivot, and the sum of squared distances from it.
struct Moments { NUMBER pivot, many, mean, squares; };

// Take PACKS packs: each channel's values of these by themselves, then merged with those before (Chan, Golub, LeVeque,
// "Updating formulae and a pairwise algorithm for computing sample variances", 1979, equation 2.1).
template <int PACKS>
static __device__ inline void take(const REAL* x, bool aligned, Walk& walk, Moments* moments)
{
    NUMBER v[PACKS][WIDE];
    for (int k = 0; k < PACKS; k++) { load(x + walk.at, aligned, v[k]); walk.go_on(); }
    for (int j = 0; j < COLUMNS; j++) {
        Moments& m = moments[j];
        const NUMBER many = PACKS * (WIDE / COLUMNS);
        NUMBER sum = 0, squares = 0;
        for (int k = 0; k < PACKS; k++) for (int w = j; w < WIDE; w += COLUMNS) sum += v[k][w] -= m.pivot;
        const NUMBER mean = sum / many;
        for (int k = 0; k < PACKS; k++)
            for (int w = j; w < WIDE; w += COLUMNS) squares += (v[k][w] - mean) * (v[k][w] - mean);
        const NUMBER all = m.many + many, apart = mean - m.mean, share = many / all;
        m.squares += squares + apart * apart * m.many * share;
        m.mean += apart * share;
        m.many = all;
    }
}

// x -> parts (3, splits, channels): of each split of each channel how many values, their mean, and the sum of squared
// distances from it.
extern "C" __global__ void __launch_bounds__(256) norm_moments(const REAL* x, double* parts, count channels,
                                                               count apart, count packs, count plane, count stride,
                                                               count splits)
{
    Walk walk(channels, apart, packs, plane, stride, splits);
    const bool aligned = is_aligned(x);
    NUMBER first[WIDE];
    Moments moments[COLUMNS];
    if (walk.has(1)) load(x + walk.at, aligned, first);
    else for (int w = 0; w < WIDE; w++) first[w] = 0;
    for (int j = 0; j < COLUMNS; j++) moments[j] = {first[j], 0, 0, 0};
    while (walk.has(AT_ONCE)) take<AT_ONCE>(x, aligned, walk, moments);
    while (walk.has(1)) take<1>(x, aligned, walk, moments);
    const count from = packs * walk.split / splits, to = packs * (walk.split + 1) / splits;
    const double many = (double)(to - from) * (WIDE / COLUMNS);
    for (int j = 0; j < COLUMNS; j++) {
        const Moments& m = moments[j];
        const double own = (double)m.pivot + m.mean, mean = block_sum(m.many * own, (int)apart) / many;
        const double squares = block_sum(m.squares + m.many * (own - mean) * (own - mean), (int)apart);
        if (threadIdx.x < apart && walk.channel < channels) {
            double* to_part = parts + walk.split * channels + walk.channel + j;
            to_part[0] = many;
            to_part[splits * channels] = mean;
            to_part[2 * splits * channels] = squares;
        }
    }
}

// The parts of a block's channels put together: thread t's is t % width beyond `first`, and every `width`-th thread
// works at the same.
struct Statistics { double mean, var; };

static __device__ inline Statistics block_statistics(const double* parts, count splits, count channels, count first,
                                                     int width, double values)
{
    const count c = first + (int)threadIdx.x % width, all = splits * channels;
    const int from = (int)threadIdx.x / width, step = (int)blockDim.x / width;
    double sum = 0, squares = 0;
    if (c < channels)
        for (count s = from; s < splits; s += step) sum += parts[s * channels + c] * parts[all + s * channels + c];
    const double mean = block_sum(sum, width) / values;
    if (c < channels)
        for (count s = from; s < splits; s += step) {
            const double distance = parts[all + s * channels + c] - mean;
            squares += parts[2 * all + s * channels + c] + parts[s * channels + c] * distance * distance;
        }
    return {mean, block_sum(squares, width) / values};
}

static __device__ inline double block_total(const double* parts, count splits, count channels, count first, int width)
{
    const count c = first + (int)threadIdx.x % width;
    double sum = 0;
    if (c < channels)
        for (count s = (int)threadIdx.x / width; s < splits; s += (int)blockDim.x / width)
            sum += parts[s * channels + c];
    return block_sum(sum, width);
}

// parts (3, splits, channels) -> merged (3, 1, channels): where they are many to each block of the next kernel.
extern "C" __global__ void __launch_bounds__(256) norm_merge_moments(const double* parts, double* merged,
                                                                     count channels, count splits, count width,
                                                                     double values)
{
    const count first = blockIdx.x * width, c = first + threadIdx.x;
    const Statistics found = block_statistics(parts, splits, channels, first, (int)width, values);
    if (threadIdx.x < width && c < channels) {
        merged[c] = values;
        merged[channels + c] = found.mean;
        merged[2 * channels + c] = found.var * values;
    }
}

// parts (2, splits, channels) -> merged (2, 1, channels)
extern "C" __global__ void __launch_bounds__(256) norm_merge_slopes(const double* parts, double* merged,
                                                                    count channels, count splits, count width)
{
    const count first = blockIdx.x * width, c = first + threadIdx.x;
    for (int plane = 0; plane < 2; plane++) {
        const double sum = block_total(parts + plane * splits * channels, splits, channels, first, (int)width);
        if (threadIdx.x < width && c < channels) merged[plane * channels + c] = sum;
    }
}

// What there is one of per channel: mean + rest is the mean, y = d * a + b for d = x - mean - rest.
struct Channel { NUMBER mean, rest, a, b; };

static __device__ inline NUMBER distance(NUMBER x, const Channel& c) { return x - c.mean - c.rest; }

// Where y does not change with x.
static __device__ inline bool is_flat(NUMBER d, const Channel& c, NUMBER most)
{
    const NUMBER y = d * c.a + c.b;
    return !(y > 0 && y < most);
}

// x -> y. `parts` (3, merged, channels) tell the statistics; without them they are the old ones. `kept`
// (4, channels) is what backward needs: mean, its rest, variance, scale. The new statistics are mixed from the old.
extern "C" __global__ void __launch_bounds__(256) norm_apply(
    const REAL* x, const double* parts, const NUMBER* gamma, const NUMBER* beta, const NUMBER* old_mean,
    const NUMBER* old_var, NUMBER* kept, NUMBER* new_mean, NUMBER* new_var, REAL* y, count channels, count apart,
    count packs, count plane, count stride, count splits, count merged, count rectified, double eps, double most_,
    double momentum)
{
    __shared__ Channel table[MOST_CHANNELS];
    Walk walk(channels, apart, packs, plane, stride, splits);
    const int t = threadIdx.x, width = (int)apart * COLUMNS;
    const count first = walk.channel - t % (int)apart * COLUMNS, c = first + t;
    const double values = (double)packs * (WIDE / COLUMNS);
    Statistics found = {0, 0};
    if (parts) found = block_statistics(parts, merged, channels, first, width, values);
    if (t < width && c < channels) {
        if (!parts) found = {(double)old_mean[c], (double)old_var[c]};
        const NUMBER mean = (NUMBER)found.mean, rest = (NUMBER)(found.mean - mean);
        const NUMBER scale = (NUMBER)(1 / sqrt(found.var + eps));
        table[t] = {mean, rest, gamma ? scale * gamma[c] : scale, beta ? beta[c] : 0};
        if (walk.split == 0) {
            kept[c] = mean;
            kept[channels + c] = rest;
            kept[2 * channels + c] = (NUMBER)found.var;
            kept[3 * channels + c] = scale;
            const double unbiased = found.var * (values / (values - 1));
            if (new_mean) new_mean[c] = (NUMBER)((1 - momentum) * old_mean[c] + momentum * found.mean);
            if (new_var) new_var[c] = (NUMBER)((1 - momentum) * old_var[c] + momentum * unbiased);
        }
    }
    __syncthreads();
    Channel own[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) own[j] = table[t % (int)apart * COLUMNS + j];
    const bool from_aligned = is_aligned(x), to_aligned = is_aligned(y);
    const NUMBER most = (NUMBER)most_;
    while (walk.has(1)) {
        NUMBER v[AT_ONCE][WIDE];
        INDEX at[AT_ONCE];
        int packs_here = 0;
        for (int k = 0; k < AT_ONCE; k++)
            if (walk.has(1)) {
                at[k] = walk.at;
                load(x + walk.at, from_aligned, v[k]);
                walk.go_on();
                packs_here = k + 1;
            }
        for (int k = 0; k < AT_ONCE; k++) {
            if (k >= packs_here) break;
            for (int w = 0; w < WIDE; w++) {
                const Channel& channel = own[w % COLUMNS];
                v[k][w] = distance(v[k][w], channel) * channel.a + channel.b;
                if (rectified) {  // NaN stays
                    v[k][w] = v[k][w] <= 0 ? 0 : v[k][w];
                    v[k][w] = v[k][w] > most ? most : v[k][w];
                }
            }
            save(y + at[k], to_aligned, v[k]);
        }
    }
}

static __device__ inline Channel channel_of(const NUMBER* kept, const NUMBER* gamma, const NUMBER* beta,
                                            count channels, count c)
{
    const NUMBER scale = kept[3 * channels + c];
    return {kept[c], kept[channels + c], gamma ? scale * gamma[c] : scale, beta ? beta[c] : 0};
}

// x, dy -> parts (2, splits, channels): of each split of each channel the sums of dy and of dy * (x - mean).
extern "C" __global__ void __launch_bounds__(256) norm_slopes(
    const REAL* x, const REAL* dy, const NUMBER* kept, const NUMBER* gamma, const NUMBER* beta, double* parts,
    count channels, count apart, count packs, count plane, count stride, count splits, count rectified, double most_)
{
    Walk walk(channels, apart, packs, plane, stride, splits);
    const bool aligned = is_aligned(x) && is_aligned(dy), there = walk.channel < channels;
    const NUMBER most = (NUMBER)most_;
    Channel own[COLUMNS];
    NUMBER sums[COLUMNS], products[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) {
        own[j] = there ? channel_of(kept, gamma, beta, channels, walk.channel + j) : Channel{0, 0, 0, 0};
        sums[j] = products[j] = 0;
    }
    while (walk.has(1)) {
        NUMBER v[AT_ONCE][WIDE], g[AT_ONCE][WIDE];
        int packs_here = 0;
        for (int k = 0; k < AT_ONCE; k++)
            if (walk.has(1)) {
                load(x + walk.at, aligned, v[k]);
                load(dy + walk.at, aligned, g[k]);
                walk.go_on();
                packs_here = k + 1;
            }
        for (int j = 0; j < COLUMNS; j++) {
            NUMBER sum = 0, product = 0;
            for (int k = 0; k < AT_ONCE; k++) {
                if (k >= packs_here) break;
                for (int w = j; w < WIDE; w += COLUMNS) {
                    const NUMBER d = distance(v[k][w], own[j]);
                    const NUMBER slope = rectified && is_flat(d, own[j], most) ? 0 : g[k][w];
                    sum += slope;
                    product += slope * d;
                }
            }
            sums[j] += sum;
            products[j] += product;
        }
    }
    for (int j = 0; j < COLUMNS; j++) {
        const double sum = block_sum((double)sums[j], (int)apart), product = block_sum((double)products[j], (int)apart);
        if (threadIdx.x < apart && there) {
            double* to = parts + walk.split * channels + walk.channel + j;
            to[0] = sum;
            to[splits * channels] = product;
        }
    }
}

// x, dy, parts (2, merged, channels) -> dx, dgamma, dbeta; `fixed` statistics do not depend on x.
extern "C" __global__ void __launch_bounds__(256) norm_dx(
    const REAL* x, const REAL* dy, const double* parts, const NUMBER* kept, const NUMBER* gamma, const NUMBER* beta,
    REAL* dx, NUMBER* dgamma, NUMBER* dbeta, count channels, count apart, count packs, count plane, count stride,
    count splits, count merged, count rectified, count fixed, double most_)
{
    __shared__ Channel table[MOST_CHANNELS];
    __shared__ NUMBER means[2][MOST_CHANNELS];
    Walk walk(channels, apart, packs, plane, stride, splits);
    const int t = threadIdx.x, width = (int)apart * COLUMNS;
    const count first = walk.channel - t % (int)apart * COLUMNS, c = first + t;
    const double values = (double)packs * (WIDE / COLUMNS);
    const double sum = block_total(parts, merged, channels, first, width);
    const double product = block_total(parts + merged * channels, merged, channels, first, width);
    if (t < width && c < channels) {
        const double scale = kept[3 * channels + c];
        table[t] = channel_of(kept, gamma, beta, channels, c);
        means[0][t] = fixed ? 0 : (NUMBER)(sum / values);
        means[1][t] = fixed ? 0 : (NUMBER)(product / values * scale * scale);
        if (walk.split == 0) {
            dbeta[c] = (NUMBER)sum;
            dgamma[c] = (NUMBER)(product * scale);
        }
    }
    __syncthreads();
    Channel own[COLUMNS];
    NUMBER shift[COLUMNS], slope[COLUMNS];
    for (int j = 0; j < COLUMNS; j++) {
        const int at = t % (int)apart * COLUMNS + j;
        own[j] = table[at];
        shift[j] = means[0][at];
        slope[j] = means[1][at];
    }
    const bool aligned = is_aligned(x) && is_aligned(dy), to_aligned = is_aligned(dx);
    const NUMBER most = (NUMBER)most_;
    while (walk.has(1)) {
        NUMBER v[AT_ONCE][WIDE], g[AT_ONCE][WIDE];
        INDEX at[AT_ONCE];
        int packs_here = 0;
        for (int k = 0; k < AT_ONCE; k++)
            if (walk.has(1)) {
                at[k] = walk.at;
                load(x + walk.at, aligned, v[k]);
                load(dy + walk.at, aligned, g[k]);
                walk.go_on();
                packs_here = k + 1;
            }
        for (int k = 0; k < AT_ONCE; k++) {
            if (k >= packs_here) break;
            for (int w = 0; w < WIDE; w++) {
                const int j = w % COLUMNS;
                const NUMBER d = distance(v[k][w], own[j]);
                const NUMBER own_slope = rectified && is_flat(d, own[j], most) ? 0 : g[k][w];
                v[k][w] = (own_slope - shift[j] - d * slope[j]) * own[j].a;
            }
            save(dx + at[k], to_aligned, v[k]);
        }
    }
}
