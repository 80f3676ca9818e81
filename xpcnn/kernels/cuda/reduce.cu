// Sums along the first axis. REAL is what is read and written, NUMBER what a thread adds up in; what threads have
// found is added up in doubles.

#define RUN 16  // numbers added up before their sum is added to the sum of those before

// The sum of a column's rows, from `from` up to `to` in steps, a RUN at a time.
template <class T>
static __device__ inline double column_sum(const T* x, count from, count to, count step, count columns)
{
    double sum = 0;
    for (count row = from; row < to; row += RUN * step) {
        NUMBER run = 0;
        for (int k = 0; k < RUN; k++)
            if (row + k * step < to) run += (NUMBER)value(x[(row + k * step) * columns]);
        sum += run;
    }
    return sum;
}

// The sums of the columns of part s of `splits` of x (rows, columns): a block has `width` columns and all threads that
// are `width` apart add up the same one.
template <class T>
static __device__ inline double block_columns(const T* x, count rows, count columns, count splits, count width,
                                              count* column, count* split)
{
    const count groups = (columns + width - 1) / width;
    *split = blockIdx.x / groups;
    *column = blockIdx.x % groups * width + threadIdx.x % width;
    const count from = rows * *split / splits + threadIdx.x / width, to = rows * (*split + 1) / splits;
    const double sum = *column < columns ? column_sum(x + *column, from, to, blockDim.x / width, columns) : 0;
    return block_sum(sum, (int)width);
}

// x (rows, columns) -> parts (splits, columns)
extern "C" __global__ void __launch_bounds__(256) sum_rows_parts(const REAL* x, double* parts, count rows,
                                                                 count columns, count splits, count width)
{
    count column, split;
    const double sum = block_columns(x, rows, columns, splits, width, &column, &split);
    if (threadIdx.x < width && column < columns) parts[split * columns + column] = sum;
}

// parts (rows, columns) -> sums (columns)
extern "C" __global__ void __launch_bounds__(256) sum_parts(const double* parts, REAL* sums, count rows, count columns,
                                                            count width)
{
    count column, split;
    const double sum = block_columns(parts, rows, columns, 1, width, &column, &split);
    if (threadIdx.x < width && column < columns) store(sums + column, (NUMBER)sum);
}

// x (rows, columns) -> sums (columns)
extern "C" __global__ void __launch_bounds__(256) sum_rows(const REAL* x, REAL* sums, count rows, count columns,
                                                           count width)
{
    count column, split;
    const double sum = block_columns(x, rows, columns, 1, width, &column, &split);
    if (threadIdx.x < width && column < columns) store(sums + column, (NUMBER)sum);
}
