// What a convolution needs beside columns and products: biases, filters first, and sums over all images.
// REAL is float, double or bf16, NUMBER what it is computed in; INDEX is int where that counts all elements, else count.

// from (B, F, O), or (F, B, O) where `moved`, plus bias (F), which may be null -> y (B, F, O), which may be `from`.
extern "C" __global__ void finish(const REAL* from, const REAL* bias, REAL* y, count total, count images,
                                  count filters, count pixels, count moved)
{
    for (count at = first_of_thread(); at < total; at += all_threads()) {
        const INDEX row = (INDEX)at / (INDEX)pixels;
        const INDEX filter = row % (int)filters, image = row / (int)filters;
        const INDEX source = moved ? (INDEX)at + (filter * (INDEX)images + image - row) * (INDEX)pixels : (INDEX)at;
        NUMBER sum = value(from[source]);
        if (bias) sum += value(bias[filter]);
        store(y + at, sum);
    }
}

// dy (B, F, O) -> moved (F, B, O), and NUMBER parts (chunks, F): the sums over each of so many parts of B*O.
// A block has one filter and one chunk.
extern "C" __global__ void by_filter(const REAL* dy, REAL* moved, void* parts, count images, count filters,
                                     count pixels, count chunks)
{
    const int filter = (int)(blockIdx.x % (int)filters), chunk = (int)(blockIdx.x / (int)filters);
    const INDEX total = (INDEX)(images * pixels), span = (total + (INDEX)chunks - 1) / (INDEX)chunks;
    const INDEX end = min(total, (chunk + 1) * span);
    NUMBER sum = 0;
    for (INDEX q = chunk * span + threadIdx.x; q < end; q += blockDim.x) {
        const INDEX image = q / (INDEX)pixels;
        const REAL element = dy[q + (image * ((INDEX)filters - 1) + filter) * (INDEX)pixels];
        moved[filter * total + q] = element;
        sum += value(element);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) ((NUMBER*)parts)[chunk * (count)filters + filter] = sum;
}
