// im2col and its adjoint for up to three spatial axes, one thread per element written: no atomics, so that results
// do not depend on timing. REAL is float, double or bf16, NUMBER what it is
// computed in; INDEX is int where that counts all elements, else count.
// Missing axes have size, kernel, stride, dilation and out of 1. Columns are (C·K, B, O), or by image (B, C·K, O).

// The output position at which kernel element k meets input i, or -1: i = o * stride + k * dilation - before.
static __device__ inline int meets(int i, int k, int stride, int dilation, int before, int out)
{
    int reach = i + before - k * dilation;
    if (reach < 0 || reach % stride) return -1;
    return reach / stride < out ? reach / stride : -1;
}

// x (B, C, n0, n1, n2) -> cols
extern "C" __global__ void im2col(const REAL* x, REAL* cols, count total, count images, count channels, count by_image,
                                  count n0, count n1, count n2, count k0, count k1, count k2, count s0, count s1,
                                  count s2, count d0, count d1, count d2, count b0, count b1, count b2, count o0,
                                  count o1, count o2)
{
    const int rows = (int)(channels * k0 * k1 * k2);
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        INDEX rest = (INDEX)at;
        const int p2 = (int)(rest % (int)o2); rest /= (int)o2;
        const int p1 = (int)(rest % (int)o1); rest /= (int)o1;
        const int p0 = (int)(rest % (int)o0); rest /= (int)o0;
        INDEX image, row;
        if (by_image) { row = rest % rows; image = rest / rows; }
        else { image = rest % (int)images; row = rest / (int)images; }
        const int i2 = p2 * (int)s2 + (int)(row % (int)k2) * (int)d2 - (int)b2; row /= (int)k2;
        const int i1 = p1 * (int)s1 + (int)(row % (int)k1) * (int)d1 - (int)b1; row /= (int)k1;
        const int i0 = p0 * (int)s0 + (int)(row % (int)k0) * (int)d0 - (int)b0; row /= (int)k0;
        const bool inside = i0 >= 0 && i0 < n0 && i1 >= 0 && i1 < n1 && i2 >= 0 && i2 < n2;
        if (inside) cols[at] = x[((((count)image * channels + row) * n0 + i0) * n1 + i1) * n2 + i2];
        else store(cols + at, 0);
    }
}

// cols -> dx (B, C, n0, n1, n2): each pixel gathers what it contributed to.
extern "C" __global__ void col2im(const REAL* cols, REAL* dx, count total, count images, count channels,
                                  count by_image, count n0, count n1, count n2, count k0, count k1, count k2, count s0,
                                  count s1, count s2, count d0, count d1, count d2, count b0, count b1, count b2,
                                  count o0, count o1, count o2)
{
    const count rows = channels * k0 * k1 * k2;
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        INDEX rest = (INDEX)at;
        const int i2 = (int)(rest % (int)n2); rest /= (int)n2;
        const int i1 = (int)(rest % (int)n1); rest /= (int)n1;
        const int i0 = (int)(rest % (int)n0); rest /= (int)n0;
        const count channel = rest % (int)channels, image = rest / (int)channels;
        NUMBER sum = 0;
        for (int a = 0; a < k0; a++) {
            const int p0 = meets(i0, a, (int)s0, (int)d0, (int)b0, (int)o0);
            if (p0 < 0) continue;
            for (int b = 0; b < k1; b++) {
                const int p1 = meets(i1, b, (int)s1, (int)d1, (int)b1, (int)o1);
                if (p1 < 0) continue;
                for (int c = 0; c < k2; c++) {
                    const int p2 = meets(i2, c, (int)s2, (int)d2, (int)b2, (int)o2);
                    if (p2 < 0) continue;
                    const count row = ((channel * k0 + a) * k1 + b) * k2 + c;
                    const count line = by_image ? image * rows + row : row * images + image;
                    sum += value(cols[((line * o0 + p0) * o1 + p1) * o2 + p2]);
                }
            }
        }
        store(dx + at, sum);
    }
}
