// im2col and its adjoint for up to three spatial axes, one thread per element written: no atomics, so that results
// do not depend on timing. REAL is float or double. Missing axes have size, kernel, stride, dilation and out of 1.

#define AXES                                                                                                    \
    int n0, int n1, int n2, int k0, int k1, int k2, int s0, int s1, int s2, int d0, int d1, int d2, int b0, int b1, \
        int b2, int o0, int o1, int o2

// The output position at which kernel element k meets input i, or -1: i = o * stride + k * dilation - before.
static __device__ int meets(int i, int k, int stride, int dilation, int before, int out)
{
    int reach = i + before - k * dilation;
    if (reach < 0 || reach % stride) return -1;
    return reach / stride < out ? reach / stride : -1;
}

// x (B, C, n0, n1, n2) -> cols (C, k0, k1, k2, B, o0, o1, o2)
extern "C" __global__ void im2col(const REAL* x, REAL* cols, long long total, int batch, int channels, AXES)
{
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < total; at += step) {
        long long rest = at;
        int p2 = rest % o2; rest /= o2;
        int p1 = rest % o1; rest /= o1;
        int p0 = rest % o0; rest /= o0;
        long long image = rest % batch; rest /= batch;
        int i2 = p2 * s2 + (int)(rest % k2) * d2 - b2; rest /= k2;
        int i1 = p1 * s1 + (int)(rest % k1) * d1 - b1; rest /= k1;
        int i0 = p0 * s0 + (int)(rest % k0) * d0 - b0; rest /= k0;
        bool inside = i0 >= 0 && i0 < n0 && i1 >= 0 && i1 < n1 && i2 >= 0 && i2 < n2;
        cols[at] = inside ? x[(((image * channels + rest) * n0 + i0) * n1 + i1) * n2 + i2] : (REAL)0;
    }
}

// cols (C, k0, k1, k2, B, o0, o1, o2) -> dx (B, C, n0, n1, n2): each pixel gathers what it contributed to.
extern "C" __global__ void col2im(const REAL* cols, REAL* dx, long long total, int batch, int channels, AXES)
{
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < total; at += step) {
        long long rest = at;
        int i2 = rest % n2; rest /= n2;
        int i1 = rest % n1; rest /= n1;
        int i0 = rest % n0; rest /= n0;
        long long channel = rest % channels, image = rest / channels;
        REAL sum = 0;
        for (int a = 0; a < k0; a++) {
            int p0 = meets(i0, a, s0, d0, b0, o0);
            if (p0 < 0) continue;
            for (int b = 0; b < k1; b++) {
                int p1 = meets(i1, b, s1, d1, b1, o1);
                if (p1 < 0) continue;
                for (int c = 0; c < k2; c++) {
                    int p2 = meets(i2, c, s2, d2, b2, o2);
                    if (p2 < 0) continue;
                    long long row = ((channel * k0 + a) * k1 + b) * k2 + c;
                    sum += cols[(((row * batch + image) * o0 + p0) * o1 + p1) * o2 + p2];
                }
            }
        }
        dx[at] = sum;
    }
}
