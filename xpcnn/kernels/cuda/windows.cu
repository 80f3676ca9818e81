// im2col and its adjoint for up to three spatial axes, without atomics, so that results do not depend on timing.
// REAL is float, double or bf16, NUMBER what it is computed in; INDEX is int where that counts all elements, else
// count. Missing axes have size, kernel, stride, dilation and out of 1. Columns are (C*K, B, O), or by image
// (B, C*K, O).

// x (B, C, n0, n1, n2) -> cols. A thread lays out what one window sees of one channel: neighbours write side by side.
extern "C" __global__ void im2col(const REAL* x, REAL* cols, count total, count images, count channels, count by_image,
                                  count n0, count n1, count n2, count k0, count k1, count k2, count s0, count s1,
                                  count s2, count d0, count d1, count d2, count b0, count b1, count b2, count o0,
                                  count o1, count o2)
{
    const INDEX pixels = (INDEX)(o0 * o1 * o2), taps = (INDEX)(k0 * k1 * k2);
    const INDEX step = by_image ? pixels : (INDEX)images * pixels;  // from a kernel element's columns to the next one's
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        INDEX rest = (INDEX)at;
        const INDEX pixel = rest % pixels; rest /= pixels;
        const int p2 = (int)(pixel % (int)o2), p1 = (int)(pixel / (int)o2 % (int)o1), p0 = (int)(pixel / (int)(o1 * o2));
        const INDEX image = by_image ? rest / (int)channels : rest % (int)images;
        const INDEX channel = by_image ? rest % (int)channels : rest / (int)images;
        const REAL* plane = x + (image * (INDEX)channels + channel) * (INDEX)(n0 * n1 * n2);
        INDEX to = by_image ? rest * taps * pixels + pixel : (channel * taps * (INDEX)images + image) * pixels + pixel;
        for (int a = 0, i0 = p0 * (int)s0 - (int)b0; a < (int)k0; a++, i0 += (int)d0)
            for (int b = 0, i1 = p1 * (int)s1 - (int)b1; b < (int)k1; b++, i1 += (int)d1) {
                const bool row = i0 >= 0 && i0 < (int)n0 && i1 >= 0 && i1 < (int)n1;
                const REAL* line = plane + ((INDEX)i0 * (int)n1 + i1) * (int)n2;
                for (int c = 0, i2 = p2 * (int)s2 - (int)b2; c < (int)k2; c++, i2 += (int)d2, to += step) {
                    if (row && i2 >= 0 && i2 < (int)n2) cols[to] = line[i2];
                    else store(cols + to, 0);
                }
            }
    }
}

// The windows along one axis that see input i: some of first .. last, those where the kernel's element is a whole one.
struct Span { int first, last; };
static __device__ inline Span seen_by(int i, int kernel, int stride, int dilation, int before, int out)
{
    const int reach = i + before, miss = reach - (kernel - 1) * dilation;
    return {miss > 0 ? (miss + stride - 1) / stride : 0, reach < 0 ? -1 : min(reach / stride, out - 1)};
}

// cols -> dx (B, C, n0, n1, n2): each pixel gathers what it contributed to.
extern "C" __global__ void col2im(const REAL* cols, REAL* dx, count total, count images, count channels,
                                  count by_image, count n0, count n1, count n2, count k0, count k1, count k2, count s0,
                                  count s1, count s2, count d0, count d1, count d2, count b0, count b1, count b2,
                                  count o0, count o1, count o2)
{
    const INDEX pixels = (INDEX)(o0 * o1 * o2), taps = (INDEX)(k0 * k1 * k2);
    const INDEX step = by_image ? pixels : (INDEX)images * pixels;
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        INDEX rest = (INDEX)at;
        const int i2 = (int)(rest % (int)n2); rest /= (int)n2;
        const int i1 = (int)(rest % (int)n1); rest /= (int)n1;
        const int i0 = (int)(rest % (int)n0); rest /= (int)n0;
        const INDEX channel = rest % (int)channels, image = rest / (int)channels;
        const REAL* from = cols + (by_image ? rest * taps * pixels : (channel * taps * (INDEX)images + image) * pixels);
        const Span r0 = seen_by(i0, (int)k0, (int)s0, (int)d0, (int)b0, (int)o0);
        const Span r1 = seen_by(i1, (int)k1, (int)s1, (int)d1, (int)b1, (int)o1);
        const Span r2 = seen_by(i2, (int)k2, (int)s2, (int)d2, (int)b2, (int)o2);
        NUMBER sum = 0;
        for (int p0 = r0.first; p0 <= r0.last; p0++) {
            const int e0 = i0 + (int)b0 - p0 * (int)s0;
            if (d0 > 1 && e0 % (int)d0) continue;
            for (int p1 = r1.first; p1 <= r1.last; p1++) {
                const int e1 = i1 + (int)b1 - p1 * (int)s1;
                if (d1 > 1 && e1 % (int)d1) continue;
                const INDEX row = ((INDEX)(e0 / (int)d0) * (int)k1 + e1 / (int)d1) * (int)k2;
                const INDEX line = ((INDEX)p0 * (int)o1 + p1) * (int)o2;
                for (int p2 = r2.first; p2 <= r2.last; p2++) {
                    const int e2 = i2 + (int)b2 - p2 * (int)s2;
                    if (d2 > 1 && e2 % (int)d2) continue;
                    sum += value(from[(row + (d2 > 1 ? e2 / (int)d2 : e2)) * step + line + p2]);
                }
            }
        }
        store(dx + at, sum);
    }
}
