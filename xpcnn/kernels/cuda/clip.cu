// Clipping by the norm of many tensors. Everything is added up in doubles, in a fixed order.

// The sum of a block's squares, for its first thread.
template <class T>
[[maybe_unused]] static __device__ inline double block_squares(const T* x, count total)
{
    double sum = 0;
    for (count at = threadIdx.x; at < total; at += blockDim.x) sum += (double)value(x[at]) * (double)value(x[at]);
    return block_sum(sum);
}

// The blocks' sums -> min(1, most / norm), or 1 where the norm is not finite; and row 0 for who reads it as a table.
extern "C" __global__ void factor(const double* parts, count blocks, double most, double* scale, count* row)
{
    double sum = 0;
    for (count at = threadIdx.x; at < blocks; at += blockDim.x) sum += parts[at];
    sum = block_sum(sum);
    const double norm = sqrt(sum);
    if (threadIdx.x) return;
    *scale = norm > most && norm - norm == 0 ? most / norm : 1;
    *row = 0;
}
