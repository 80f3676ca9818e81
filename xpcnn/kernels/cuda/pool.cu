// Pooling of images with up to three spatial axes, one thread per element written; missing axes have size, kernel,
// stride, dilation and out of 1. REAL is what is stored, NUMBER what is computed in; PLACE numbers a kernel's elements;
// INDEX is int where that counts all elements, else count. Images lie in planes (N*C, n0, n1, n2) with `step` 1, or
// with their channels last (N, n0, n1, n2, C) with `step` C.
#ifndef PLACE
#define PLACE unsigned char
#endif

struct Axis { int size, kernel, stride, dilation, before, out; };

// An element's position along each axis, its plane, and its channel where these are last.
struct Spot {
    int p0, p1, p2, inner;
    INDEX plane;

    __device__ Spot(INDEX at, int step, int n0, int n1, int n2)
    {
        inner = 0;
        if (step > 1) { inner = (int)(at % step); at /= step; }
        p2 = (int)(at % n2); at /= n2;
        p1 = (int)(at % n1); at /= n1;
        p0 = (int)(at % n0); plane = at / n0;
    }

    // Where the plane begins, of planes of so many elements.
    __device__ INDEX start(INDEX area, int step) const { return plane * area * step + inner; }
};

// The elements of a kernel at output o that meet the image: from first up to last.
struct Span { int first, last; };

static __device__ inline Span met_at(int o, const Axis& a)
{
    const int start = o * a.stride - a.before;
    const int first = start >= 0 ? 0 : (-start + a.dilation - 1) / a.dilation;
    const int room = a.size - start;  // from the kernel's first element to the image's end
    return {first, room <= 0 ? 0 : min(a.kernel, (room + a.dilation - 1) / a.dilation)};
}

// The outputs whose kernels reach over input i: from first up to last, though a dilated one may have a gap there.
static __device__ inline Span reach_of(int i, const Axis& a)
{
    const int reach = i + a.before, miss = reach - (a.kernel - 1) * a.dilation;
    return {miss > 0 ? (miss + a.stride - 1) / a.stride : 0, min(reach / a.stride + 1, a.out)};
}

// The kernel's element that meets input i at output o, which reaches over it; -1 if that is a gap.
static __device__ inline int element_at(int i, int o, const Axis& a)
{
    const int way = i + a.before - o * a.stride;
    return way < 0 || way % a.dilation ? -1 : way / a.dilation;
}

// What counts as the first element that meets the image, in the order in which they are looked at.
static __device__ inline int first_met(int o, const Axis& a, bool backwards)
{
    const int start = o * a.stride - a.before, last = a.kernel - 1;
    const int beyond = backwards ? a.size - 1 - start : a.dilation - 1 - start;
    const int whole = beyond >= 0 ? beyond / a.dilation : -((-beyond + a.dilation - 1) / a.dilation);
    return min(max(backwards ? last - whole : whole, 0), last);
}

// x -> y, and the number of the kernel's element that holds the maximum. Where all are minus infinity it is the first
// in the image. NaN spreads to y, but the place is that of the largest before it.
extern "C" __global__ void __launch_bounds__(256) max_pool(
    const REAL* x, REAL* y, PLACE* places, count total, count step, count backwards, count n0, count n1, count n2,
    count k0, count k1, count k2, count s0, count s1, count s2, count d0, count d1, count d2, count b0, count b1,
    count b2, count o0, count o1, count o2)
{
    const Axis a = {(int)n0, (int)k0, (int)s0, (int)d0, (int)b0, (int)o0};
    const Axis b = {(int)n1, (int)k1, (int)s1, (int)d1, (int)b1, (int)o1};
    const Axis c = {(int)n2, (int)k2, (int)s2, (int)d2, (int)b2, (int)o2};
    const int taps = (int)(k0 * k1 * k2);
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        const Spot o((INDEX)at, (int)step, a.out, b.out, c.out);
        const REAL* plane = x + o.start((INDEX)n0 * b.size * c.size, (int)step);
        const Span r0 = met_at(o.p0, a), r1 = met_at(o.p1, b), r2 = met_at(o.p2, c);
        const int f0 = first_met(o.p0, a, backwards), f1 = first_met(o.p1, b, backwards);
        int place = (f0 * b.kernel + f1) * c.kernel + first_met(o.p2, c, backwards);
        if (backwards) place = taps - 1 - place;
        NUMBER most = (NUMBER)log(0.0);  // minus infinity
        for (int u = r0.first; u < r0.last; u++)
            for (int v = r1.first; v < r1.last; v++)
                for (int w = r2.first; w < r2.last; w++) {
                    const int e0 = backwards ? r0.first + r0.last - 1 - u : u;
                    const int e1 = backwards ? r1.first + r1.last - 1 - v : v;
                    const int e2 = backwards ? r2.first + r2.last - 1 - w : w;
                    const int i0 = o.p0 * a.stride - a.before + e0 * a.dilation;
                    const int i1 = o.p1 * b.stride - b.before + e1 * b.dilation;
                    const int i2 = o.p2 * c.stride - c.before + e2 * c.dilation;
                    const NUMBER here = value(plane[(((INDEX)i0 * b.size + i1) * c.size + i2) * (int)step]);
                    if (here > most) place = (e0 * b.kernel + e1) * c.kernel + e2;
                    if (here > most || here != here) most = here;
                }
        store(y + at, most);
        places[at] = (PLACE)place;
    }
}

// dy, places -> dx: each pixel gathers from the windows whose maximum it is.
extern "C" __global__ void __launch_bounds__(256) max_pool_backward(
    const REAL* dy, const PLACE* places, REAL* dx, count total, count step, count n0, count n1, count n2,
    count k0, count k1, count k2, count s0, count s1, count s2, count d0, count d1, count d2, count b0, count b1,
    count b2, count o0, count o1, count o2)
{
    const Axis a = {(int)n0, (int)k0, (int)s0, (int)d0, (int)b0, (int)o0};
    const Axis b = {(int)n1, (int)k1, (int)s1, (int)d1, (int)b1, (int)o1};
    const Axis c = {(int)n2, (int)k2, (int)s2, (int)d2, (int)b2, (int)o2};
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        const Spot i((INDEX)at, (int)step, a.size, b.size, c.size);
        const INDEX plane = i.start((INDEX)o0 * b.out * c.out, (int)step);
        const Span r0 = reach_of(i.p0, a), r1 = reach_of(i.p1, b), r2 = reach_of(i.p2, c);
        NUMBER sum = 0;
        for (int q0 = r0.last - 1; q0 >= r0.first; q0--) {  // so that the kernel's elements go up
            const int e0 = element_at(i.p0, q0, a);
            for (int q1 = r1.last - 1; q1 >= r1.first && e0 >= 0; q1--) {
                const int e1 = element_at(i.p1, q1, b);
                for (int q2 = r2.last - 1; q2 >= r2.first && e1 >= 0; q2--) {
                    const int e2 = element_at(i.p2, q2, c);
                    const INDEX from = plane + (((INDEX)q0 * b.out + q1) * c.out + q2) * (int)step;
                    if (e2 >= 0 && (int)places[from] == (e0 * b.kernel + e1) * c.kernel + e2) sum += value(dy[from]);
                }
            }
        }
        store(dx + at, sum);
    }
}

// How many elements of a window count along one axis: those in the image and in `before` and `after` around it.
static __device__ inline int counted(int o, const Axis& a, int before, int after)
{
    const int start = o * a.stride - a.before, above = a.size + after - start + a.dilation - 1;
    const int below = -before - start + a.dilation - 1;
    const int most = above < 0 ? 0 : min(above / a.dilation, a.kernel);
    return most - (below < 0 ? 0 : min(below / a.dilation, a.kernel));
}

// What a mean divides by.
static __device__ inline NUMBER divisor(int q0, int q1, int q2, const Axis& a, const Axis& b, const Axis& c, int f0,
                                        int l0, int f1, int l1, int f2, int l2)
{
    return (NUMBER)max(1, counted(q0, a, f0, l0) * counted(q1, b, f1, l1) * counted(q2, c, f2, l2));
}

// x -> y, the means of windows: of what is in the image or in so much padding (f before it, l after it) on each axis.
extern "C" __global__ void __launch_bounds__(256) avg_pool(
    const REAL* x, REAL* y, count total, count step, count f0, count l0, count f1, count l1, count f2, count l2,
    count n0, count n1, count n2,
    count k0, count k1, count k2, count s0, count s1, count s2, count d0, count d1, count d2, count b0, count b1,
    count b2, count o0, count o1, count o2)
{
    const Axis a = {(int)n0, (int)k0, (int)s0, (int)d0, (int)b0, (int)o0};
    const Axis b = {(int)n1, (int)k1, (int)s1, (int)d1, (int)b1, (int)o1};
    const Axis c = {(int)n2, (int)k2, (int)s2, (int)d2, (int)b2, (int)o2};
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        const Spot o((INDEX)at, (int)step, a.out, b.out, c.out);
        const REAL* plane = x + o.start((INDEX)n0 * b.size * c.size, (int)step);
        const Span r0 = met_at(o.p0, a), r1 = met_at(o.p1, b), r2 = met_at(o.p2, c);
        NUMBER sum = 0;
        for (int u = r0.first; u < r0.last; u++)
            for (int v = r1.first; v < r1.last; v++)
                for (int w = r2.first; w < r2.last; w++) {
                    const int i0 = o.p0 * a.stride - a.before + u * a.dilation;
                    const int i1 = o.p1 * b.stride - b.before + v * b.dilation;
                    const int i2 = o.p2 * c.stride - c.before + w * c.dilation;
                    sum += value(plane[(((INDEX)i0 * b.size + i1) * c.size + i2) * (int)step]);
                }
        store(y + at, sum / divisor(o.p0, o.p1, o.p2, a, b, c, (int)f0, (int)l0, (int)f1, (int)l1, (int)f2, (int)l2));
    }
}

// dy -> dx: each pixel gathers its share of the windows that it counts in.
extern "C" __global__ void __launch_bounds__(256) avg_pool_backward(
    const REAL* dy, REAL* dx, count total, count step, count f0, count l0, count f1, count l1, count f2, count l2,
    count n0, count n1, count n2,
    count k0, count k1, count k2, count s0, count s1, count s2, count d0, count d1, count d2, count b0, count b1,
    count b2, count o0, count o1, count o2)
{
    const Axis a = {(int)n0, (int)k0, (int)s0, (int)d0, (int)b0, (int)o0};
    const Axis b = {(int)n1, (int)k1, (int)s1, (int)d1, (int)b1, (int)o1};
    const Axis c = {(int)n2, (int)k2, (int)s2, (int)d2, (int)b2, (int)o2};
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        const Spot i((INDEX)at, (int)step, a.size, b.size, c.size);
        const REAL* plane = dy + i.start((INDEX)o0 * b.out * c.out, (int)step);
        const Span r0 = reach_of(i.p0, a), r1 = reach_of(i.p1, b), r2 = reach_of(i.p2, c);
        NUMBER sum = 0;
        for (int q0 = r0.last - 1; q0 >= r0.first; q0--) {
            if (element_at(i.p0, q0, a) < 0) continue;
            for (int q1 = r1.last - 1; q1 >= r1.first; q1--) {
                if (element_at(i.p1, q1, b) < 0) continue;
                for (int q2 = r2.last - 1; q2 >= r2.first; q2--) {
                    if (element_at(i.p2, q2, c) < 0) continue;
                    sum += value(plane[(((INDEX)q0 * b.out + q1) * c.out + q2) * (int)step])
                           / divisor(q0, q1, q2, a, b, c, (int)f0, (int)l0, (int)f1, (int)l1, (int)f2, (int)l2);
                }
            }
        }
        store(dx + at, sum);
    }
}

// x (planes, area) -> y (planes): means. A block has `rows` planes, which neighbouring threads have parts of. With a
// `step`, x is (planes / step, area, step), and each thread has a plane.
extern "C" __global__ void __launch_bounds__(256) global_mean(const REAL* x, REAL* y, count planes, count area,
                                                              count step, count rows)
{
    const int lanes = (int)(blockDim.x / rows), lane = (int)threadIdx.x % lanes;
    const count plane = blockIdx.x * rows + threadIdx.x / lanes;
    const REAL* from = x + plane / step * area * step + plane % step;
    NUMBER sum = 0;
    if (plane < planes)
        for (count p = lane; p < area; p += lanes) sum += value(from[p * step]);
    sum = block_near_sum(sum, lanes);
    if (plane < planes && lane == 0) store(y + plane, sum / (NUMBER)area);
}

// dy (planes) -> dx (planes, area), or (planes / step, area, step): an equal share for each pixel.
extern "C" __global__ void __launch_bounds__(256) global_mean_backward(const REAL* dy, REAL* dx, count total,
                                                                       count area, count step)
{
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        const INDEX line = (INDEX)at / (int)step, plane = line / (INDEX)area * (int)step + (INDEX)at % (int)step;
        store(dx + at, value(dy[plane]) / (NUMBER)area);
    }
}
