// REAL is float, double or bf16, NUMBER what sums are kept in.

// NUMBER parts (rows, first + second) -> their sums, in order: of the first columns, and of the second ones.
extern "C" __global__ void add_up(const void* parts, REAL* first_sums, REAL* second_sums, count rows, count first,
                                  count second)
{
    const count columns = first + second;
    for (count at = first_of_thread(); at < columns; at += all_threads()) {
        const NUMBER* part = (const NUMBER*)parts + at;
        NUMBER sum = 0;
        for (count row = 0; row < rows; row++) sum += part[row * columns];
        store(at < first ? first_sums + at : second_sums + (at - first), sum);
    }
}
