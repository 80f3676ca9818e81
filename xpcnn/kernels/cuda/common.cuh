// What all kernels share. No headers: NVRTC has none, and the tests compile the same text as C++ for a CPU.

using count = long long;

// Sixteen bits of a float: sign, exponent and seven bits of the fraction.
struct bf16 {
    unsigned short bits;
};

// Numbers are computed in float, or in double where they are stored so.
[[maybe_unused]] static __device__ inline float value(unsigned char x) { return x; }
[[maybe_unused]] static __device__ inline float value(float x) { return x; }
[[maybe_unused]] static __device__ inline double value(double x) { return x; }
[[maybe_unused]] static __device__ inline float value(bf16 x)
{
    union { unsigned bits; float number; } both;
    both.bits = (unsigned)x.bits << 16;
    return both.number;
}

[[maybe_unused]] static __device__ inline void store(float* p, float x) { *p = x; }
[[maybe_unused]] static __device__ inline void store(double* p, double x) { *p = x; }
[[maybe_unused]] static __device__ inline void store(bf16* p, float x)  // to the nearest, ties to even; NaN stays NaN
{
    union { float number; unsigned bits; } both;
    both.number = x;
    unsigned nan = (both.bits & 0x7fffffffu) > 0x7f800000u;
    p->bits = nan ? 0x7fc0u : (unsigned short)((both.bits + 0x7fffu + ((both.bits >> 16) & 1u)) >> 16);
}

// A product that is rounded before anything is added to it, as two kernels would do.
[[maybe_unused]] static __device__ inline float rounded_product(float a, float b) { return __fmul_rn(a, b); }
[[maybe_unused]] static __device__ inline double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// This thread's place among all of a launch, and how many there are.
[[maybe_unused]] static __device__ inline count first_of_thread() { return (count)blockIdx.x * blockDim.x + threadIdx.x; }
[[maybe_unused]] static __device__ inline count all_threads() { return (count)gridDim.x * blockDim.x; }

// The sum of one number of every thread of a block (a power of two, at most 1024), in one fixed order, for all of them;
// or, with ``apart`` (a power of two), of every ``apart``-th of them, counted from each thread.
template <class T>
[[maybe_unused]] static __device__ T block_sum(T x, int apart = 1)
{
    __shared__ T sums[1024];
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half >= apart; half /= 2) {
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    T sum = sums[threadIdx.x % apart];
    __syncthreads();
    return sum;
}

// The sum of one number of every thread of a run of `lanes` (a power of two) neighbours, for all of them.
template <class T>
[[maybe_unused]] static __device__ T block_near_sum(T x, int lanes)
{
    __shared__ T sums[1024];
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = lanes / 2; half; half /= 2) {
        if ((int)threadIdx.x % lanes < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    T sum = sums[threadIdx.x / lanes * lanes];
    __syncthreads();
    return sum;
}
