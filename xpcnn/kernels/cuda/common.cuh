// What all kernels share. No headers: NVRTC has none, and the tests compile the same text as C++ for a CPU.

using count = long long;

// Sixteen bits of a float: sign, exponent and seven bits of the fraction.
struct bf16 {
    unsigned short bits;
};

// Numbers are computed in float, or in double where they are stored so.
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

// This thread's place among all of a launch, and how many there are.
[[maybe_unused]] static __device__ inline count first_of_thread() { return (count)blockIdx.x * blockDim.x + threadIdx.x; }
[[maybe_unused]] static __device__ inline count all_threads() { return (count)gridDim.x * blockDim.x; }

// The sum of one number of every thread of a block (a power of two, at most 1024), in one fixed order, for all of them.
template <class T>
[[maybe_unused]] static __device__ T block_sum(T x)
{
    __shared__ T sums[1024];
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = blockDim.x / 2; half; half /= 2) {
        if ((int)threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    T sum = sums[0];
    __syncthreads();
    return sum;
}
