// REAL is float, double or bf16, NUMBER what sums are kept in, SOURCE what is added up, INDEX counts its elements.

// dY of F filters, by pixels (P, F) or, in planes of ``plane`` pixels, (P / plane, F, plane) -> its sums over P, in parts
// (chunks, F). A block has a chunk for ``apart`` filters, which its threads take side by side.
extern "C" __global__ void __launch_bounds__(256) filter_sums(const SOURCE* dy, REAL* sums, count pixels, count filters,
                                                              count plane, count apart, count chunks)
{
    const INDEX P = (INDEX)pixels, F = (INDEX)filters, O = (INDEX)plane;
    const int beside = (int)apart, chunk = (int)(blockIdx.x % (unsigned)chunks);
    const int f = (int)(blockIdx.x / (unsigned)chunks) * beside + (int)threadIdx.x % beside;
    const INDEX rows = (INDEX)blockDim.x / beside, step = (INDEX)chunks * rows;
    NUMBER sum = 0;
    if (f < filters)
        for (INDEX p = chunk * rows + (INDEX)threadIdx.x / beside; p < P; p += step)
            sum += value(O == 1 ? dy[p * F + f] : dy[(p / O * F + f) * O + p % O]);
    sum = block_sum(sum, beside);
    if ((int)threadIdx.x < beside && f < filters) store(sums + (count)chunk * filters + f, sum);
}

// As many elements as there are, to memory that begins where cuDNN's fast kernels can read it.
extern "C" __global__ void duplicate(const REAL* x, REAL* y, count n)
{
    for (count at = first_of_thread(); at < n; at += all_threads()) y[at] = x[at];
}
