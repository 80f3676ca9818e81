// What generated kernels are made of (fuse.py). NUMBER is what is computed in; LANES elements are read at once.

template <class T>
struct alignas(sizeof(T) * LANES) Pack {
    T at[LANES];
};

template <class T>
[[maybe_unused]] static __device__ inline bool aligned(const T* p) { return (count)p % (count)sizeof(Pack<T>) == 0; }

[[maybe_unused]] static __device__ inline void store(bool* p, bool x) { *p = x; }

// NumPy's rules: NaN wins over a number.
[[maybe_unused]] static __device__ inline NUMBER larger(NUMBER a, NUMBER b) { return a > b || a != a ? a : b; }
[[maybe_unused]] static __device__ inline NUMBER smaller(NUMBER a, NUMBER b) { return a < b || a != a ? a : b; }
[[maybe_unused]] static __device__ inline NUMBER at_least(NUMBER x, NUMBER low) { return x < low || low != low ? low : x; }
[[maybe_unused]] static __device__ inline NUMBER at_most(NUMBER x, NUMBER high) { return x > high || high != high ? high : x; }
[[maybe_unused]] static __device__ inline NUMBER sign_of(NUMBER x) { return x > 0 ? 1 : x < 0 ? -1 : x == 0 ? 0 : x; }

