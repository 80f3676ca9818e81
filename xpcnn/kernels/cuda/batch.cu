// Batches out of a data set that lies on the device, and what a recorded step notes down. REAL is what batches are
// stored as; SOURCE what the data set is: bytes become pixel * scale - shift, anything else is taken as it is.
// `progress` holds the number of the batch that is due.

// images (N, P), labels (N), order (N): the next `images_out` of them -> x (images_out, P), t (images_out)
extern "C" __global__ void gather(const SOURCE* images, const count* labels, const count* order,
                                  const count* progress, REAL* x, count* t, count images_out, count pixels,
                                  count batch_size, double scale, double shift)
{
    const count* chosen = order + progress[0] * batch_size;
    const NUMBER factor = (NUMBER)scale, less = (NUMBER)shift;
    for (count at = first_of_thread(); at < images_out * pixels; at += all_threads()) {
        const INDEX image = (INDEX)at / (INDEX)pixels;
        const NUMBER number = value(images[chosen[image] * pixels + (at - image * pixels)]);
        store(x + at, rounded_product(number, factor) - less);
    }
    for (count at = first_of_thread(); at < images_out; at += all_threads()) t[at] = labels[chosen[at]];
}

// How many of logits (N, K) are largest at their label, first of equals: one block -> right[progress]
extern "C" __global__ void tally(const REAL* logits, const count* labels, const count* progress, count* right,
                                 count rows, count classes)
{
    count found = 0;
    for (count row = threadIdx.x; row < rows; row += blockDim.x) {
        const REAL* scores = logits + row * classes;
        count best = 0;
        for (count k = 1; k < classes; k++) {
            const bool larger = value(scores[k]) > value(scores[best]);
            const bool nan_at_last = value(scores[k]) != value(scores[k]) && value(scores[best]) == value(scores[best]);
            if (larger || nan_at_last) best = k;
        }
        found += best == labels[row];
    }
    found = block_sum(found);
    if (threadIdx.x == 0) right[progress[0]] = found;
}

// Note a batch's loss, and go on to the next.
extern "C" __global__ void advance(const LOSS* loss, LOSS* losses, count* progress)
{
    if (first_of_thread() == 0) {
        losses[progress[0]] = loss[0];
        progress[0] += 1;
    }
}

// Copy an array into another.
extern "C" __global__ void replace(const LOSS* source, LOSS* target, count total)
{
    for (count at = first_of_thread(); at < total; at += all_threads()) target[at] = source[at];
}
