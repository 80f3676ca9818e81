// Convolution in groups of channels, read straight from the images: few multiplications for each number read.
// REAL is float, double or bf16, NUMBER what it is computed in; INDEX is int where that counts all elements, else
// count. `each` and `own` are the channels and the filters of one group. Missing axes have size, kernel, stride,
// dilation and out of 1.

// y (B, F, o0, o1, o2), one thread each.
extern "C" __global__ void grouped_forward(const REAL* x, const REAL* weight, const REAL* bias, REAL* y, count total,
                                           count groups, count each, count own, count n0, count n1, count n2, count k0,
                                           count k1, count k2, count s0, count s1, count s2, count d0, count d1,
                                           count d2, count b0, count b1, count b2, count o0, count o1, count o2)
{
    const int filters = (int)(groups * own);
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        INDEX rest = (INDEX)at;
        const int p2 = (int)(rest % (int)o2); rest /= (int)o2;
        const int p1 = (int)(rest % (int)o1); rest /= (int)o1;
        const int p0 = (int)(rest % (int)o0); rest /= (int)o0;
        const int filter = (int)(rest % filters);
        const INDEX image = rest / filters;
        const REAL* plane = x + (image * (INDEX)groups + filter / (int)own) * (INDEX)(each * n0 * n1 * n2);
        const REAL* w = weight + (INDEX)filter * (INDEX)(each * k0 * k1 * k2);
        NUMBER sum = 0;
        for (int k = 0; k < (int)each; k++, plane += (INDEX)(n0 * n1 * n2))
            for (int a = 0, i0 = p0 * (int)s0 - (int)b0; a < (int)k0; a++, i0 += (int)d0)
                for (int b = 0, i1 = p1 * (int)s1 - (int)b1; b < (int)k1; b++, i1 += (int)d1, w += k2) {
                    if (i0 < 0 || i0 >= (int)n0 || i1 < 0 || i1 >= (int)n1) continue;
                    const REAL* line = plane + ((INDEX)i0 * (int)n1 + i1) * (int)n2;
                    for (int c = 0, i2 = p2 * (int)s2 - (int)b2; c < (int)k2; c++, i2 += (int)d2)
                        if (i2 >= 0 && i2 < (int)n2) sum += value(w[c]) * value(line[i2]);
                }
        if (bias) sum += value(bias[filter]);
        store(y + at, sum);
    }
}

// The window along one axis whose kernel element k meets input i, or -1.
static __device__ inline int meets(int i, int k, int stride, int dilation, int before, int out)
{
    const int reach = i + before - k * dilation;
    if (reach < 0 || (stride > 1 && reach % stride)) return -1;
    const int window = stride > 1 ? reach / stride : reach;
    return window < out ? window : -1;
}

// dx (B, C, n0, n1, n2), one thread each, which gathers what its pixel contributed to.
extern "C" __global__ void grouped_images(const REAL* dy, const REAL* weight, REAL* dx, count total, count groups,
                                          count each, count own, count n0, count n1, count n2, count k0, count k1,
                                          count k2, count s0, count s1, count s2, count d0, count d1, count d2,
                                          count b0, count b1, count b2, count o0, count o1, count o2)
{
    const int taps = (int)(k0 * k1 * k2), channels = (int)(groups * each);
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        INDEX rest = (INDEX)at;
        const int i2 = (int)(rest % (int)n2); rest /= (int)n2;
        const int i1 = (int)(rest % (int)n1); rest /= (int)n1;
        const int i0 = (int)(rest % (int)n0); rest /= (int)n0;
        const int channel = (int)(rest % channels), first = channel / (int)each * (int)own;
        const INDEX image = rest / channels;
        NUMBER sum = 0;
        for (int filter = first; filter < first + (int)own; filter++) {
            const REAL* plane = dy + (image * (INDEX)(groups * own) + filter) * (INDEX)(o0 * o1 * o2);
            const REAL* w = weight + ((INDEX)filter * (int)each + channel % (int)each) * taps;
            for (int a = 0; a < (int)k0; a++) {
                const int p0 = meets(i0, a, (int)s0, (int)d0, (int)b0, (int)o0);
                for (int b = 0; b < (int)k1; b++, w += k2) {
                    const int p1 = meets(i1, b, (int)s1, (int)d1, (int)b1, (int)o1);
                    if (p0 < 0 || p1 < 0) continue;
                    const REAL* line = plane + ((INDEX)p0 * (int)o1 + p1) * (int)o2;
                    for (int c = 0; c < (int)k2; c++) {
                        const int p2 = meets(i2, c, (int)s2, (int)d2, (int)b2, (int)o2);
                        if (p2 >= 0) sum += value(w[c]) * value(line[p2]);
                    }
                }
            }
        }
        store(dx + at, sum);
    }
}

// NUMBER parts (chunks, F*each*K + F): the gradients of weights and biases, each the sum over a part of the images.
// A block has one weight and one chunk of the images and windows; that of a filter's first weight adds its bias.
extern "C" __global__ void grouped_weights(const REAL* dy, const REAL* x, void* parts, count images, count chunks,
                                           count groups, count each, count own, count n0, count n1, count n2, count k0,
                                           count k1, count k2, count s0, count s1, count s2, count d0, count d1,
                                           count d2, count b0, count b1, count b2, count o0, count o1, count o2)
{
    const int filters = (int)(groups * own), weights = filters * (int)(each * k0 * k1 * k2);
    const int which = (int)(blockIdx.x % weights), chunk = (int)(blockIdx.x / weights);
    int rest = which;
    const int e2 = rest % (int)k2 * (int)d2 - (int)b2; rest /= (int)k2;
    const int e1 = rest % (int)k1 * (int)d1 - (int)b1; rest /= (int)k1;
    const int e0 = rest % (int)k0 * (int)d0 - (int)b0; rest /= (int)k0;
    const int filter = rest / (int)each, channel = filter / (int)own * (int)each + rest % (int)each;
    const bool adds_bias = which == filter * (int)(each * k0 * k1 * k2);
    const INDEX pixels = (INDEX)(o0 * o1 * o2), inputs = (INDEX)(n0 * n1 * n2), total = (INDEX)images * pixels;
    const INDEX span = (total + (INDEX)chunks - 1) / (INDEX)chunks, end = min(total, (chunk + 1) * span);
    NUMBER sum = 0, bias = 0;
    for (INDEX q = chunk * span + threadIdx.x; q < end; q += blockDim.x) {
        const INDEX image = q / pixels;
        const int pixel = (int)(q - image * pixels), row = pixel / (int)o2;
        const int i2 = (pixel - row * (int)o2) * (int)s2 + e2;
        const int i1 = row % (int)o1 * (int)s1 + e1, i0 = row / (int)o1 * (int)s0 + e0;
        const NUMBER g = value(dy[(image * filters + filter) * pixels + pixel]);
        bias += g;
        if (i0 < 0 || i0 >= (int)n0 || i1 < 0 || i1 >= (int)n1 || i2 < 0 || i2 >= (int)n2) continue;
        sum += g * value(x[(image * (INDEX)(groups * each) + channel) * inputs + (i0 * (int)n1 + i1) * (int)n2 + i2]);
    }
    NUMBER* into = (NUMBER*)parts + (count)chunk * (weights + filters);
    sum = block_sum(sum);
    if (threadIdx.x == 0) into[which] = sum;
    if (!adds_bias) return;  // all of a block's threads
    bias = block_sum(bias);
    if (threadIdx.x == 0) into[weights + filter] = bias;
}
