// Convolution with a small kernel, bias, ReLU and max pooling in one kernel, and its gradients.
//
// The kernel's size, the stride and the pooling window are macros, so that everything a thread keeps stays in registers.
// REAL is float, double or bf16, NUMBER what it is computed in; INDEX is int where that counts all elements, else count.
// The image is padded by `top` and `left`; pooled images have `rows` x `cols` pixels, whose window (0, 0) starts there.
#ifndef KH
#define KH 5
#define KW 5
#define SH 1
#define SW 1
#define PH 2
#define PW 2
#define FILTERS 4  // of one thread, forwards
#define CHANNELS 3  // of one thread, of the images' gradient
#endif
#define MOST_COLUMNS 256  // C*KH*KW
#define THREADS 128

#ifdef __CUDACC__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED
#endif

#define PATCH_ROWS ((PH - 1) * SH + KH)  // of the image, that a pooled pixel sees
#define PATCH_COLS ((PW - 1) * SW + KW)

struct alignas(FILTERS * sizeof(NUMBER)) Weights { NUMBER of[FILTERS]; };  // one element of several filters

// A thread makes one pooled pixel of several filters. A block has the same filters, whose weights it shares. The
// first of equal maxima wins; NaN stays, as elsewhere.
extern "C" __global__ void __launch_bounds__(128) pooled_forward(const REAL* x, const REAL* weight, const REAL* bias,
                                                                 REAL* y, bool* active, unsigned char* place,
                                                                 count images, count channels, count filters,
                                                                 count height, count width, count top, count left,
                                                                 count rows, count cols)
{
    __shared__ Weights shared[MOST_COLUMNS];
    const int parts = ((int)filters + FILTERS - 1) / FILTERS, columns = (int)channels * (KH * KW);
    const int filter = (int)(blockIdx.x % parts) * FILTERS;
    for (int f = 0; f < FILTERS; f++)
        for (int k = threadIdx.x; k < columns; k += THREADS)
            shared[k].of[f] = filter + f < (int)filters ? value(weight[(INDEX)(filter + f) * columns + k]) : 0;
    __syncthreads();
    const INDEX pixels = (INDEX)(rows * cols), at = (INDEX)(blockIdx.x / parts) * THREADS + threadIdx.x;
    if (at >= (INDEX)images * pixels) return;
    const INDEX image = at / pixels;
    const int pixel = (int)(at - image * pixels);
    const int i0 = pixel / (int)cols * (PH * SH) - (int)top, j0 = pixel % (int)cols * (PW * SW) - (int)left;
    const REAL* plane = x + image * (INDEX)(channels * height * width);
    const Weights* own = shared;
    NUMBER sums[PH][PW][FILTERS] = {};
    for (int c = 0; c < (int)channels; c++, own += KH * KW, plane += (INDEX)(height * width)) {
        UNROLLED
        for (int r = 0; r < PATCH_ROWS; r++) {
            NUMBER line[PATCH_COLS];
            const bool inside = i0 + r >= 0 && i0 + r < (int)height;
            UNROLLED
            for (int j = 0; j < PATCH_COLS; j++) {
                const bool there = inside && j0 + j >= 0 && j0 + j < (int)width;
                line[j] = there ? value(plane[(i0 + r) * (int)width + j0 + j]) : 0;
            }
            UNROLLED
            for (int u = 0; u < PH; u++) {
                const int a = r - u * SH;
                if (a < 0 || a >= KH) continue;
                UNROLLED
                for (int b = 0; b < KW; b++) {
                    const Weights w = own[a * KW + b];
                    UNROLLED
                    for (int v = 0; v < PW; v++)
                        UNROLLED
                        for (int f = 0; f < FILTERS; f++) sums[u][v][f] += line[v * SW + b] * w.of[f];
                }
            }
        }
    }
    UNROLLED
    for (int f = 0; f < FILTERS; f++) {
        if (filter + f >= (int)filters) return;
        NUMBER best = sums[0][0][f];
        int where = 0;
        UNROLLED
        for (int p = 1; p < PH * PW; p++) {
            const NUMBER next = sums[p / PW][p % PW][f];
            if (next > best) where = p;
            if (next > best || next != next) best = next;
        }
        if (bias) best += value(bias[filter + f]);
        const INDEX to = (image * (INDEX)filters + filter + f) * pixels + pixel;
        store(y + to, best <= 0 ? 0 : best);
        active[to] = best > 0;
        place[to] = (unsigned char)where;
    }
}

#define TILE_ROWS (31 / KW < KH ? 31 / KW : KH)  // of the kernel, whose gradients a thread adds up at a time
#define TILE (TILE_ROWS * KW)
#define TILES ((KH + TILE_ROWS - 1) / TILE_ROWS)
#define PITCH (THREADS + 4)  // so that threads side by side read other banks

// NUMBER parts (chunks, F*C*KH*KW + F): the gradients of weights and biases, each the sum over a part of the pooled
// pixels. A block has some rows of one filter's kernel for one channel, and one chunk.
extern "C" __global__ void __launch_bounds__(128) pooled_weights(const REAL* dy, const bool* active,
                                                                 const unsigned char* place, const REAL* x, void* parts,
                                                                 count images, count channels, count filters,
                                                                 count height, count width, count top, count left,
                                                                 count rows, count cols, count chunks)
{
    __shared__ NUMBER sums[(TILE + 1) * PITCH], quarters[THREADS];
    int rest = (int)(blockIdx.x / (int)chunks);
    const int chunk = (int)(blockIdx.x % (int)chunks);
    const int first_row = rest % TILES * TILE_ROWS; rest /= TILES;
    const int channel = rest % (int)channels, filter = rest / (int)channels;
    const INDEX pixels = (INDEX)(rows * cols), total = (INDEX)images * pixels;
    const INDEX span = (total + (INDEX)chunks - 1) / (INDEX)chunks, end = min(total, (chunk + 1) * span);
    NUMBER own[TILE + 1] = {};  // the last is the bias's
    for (INDEX q = chunk * span + threadIdx.x; q < end; q += THREADS) {
        const INDEX image = q / pixels, at = q + (image * ((INDEX)filters - 1) + filter) * pixels;
        const bool on = active[at];
        const int pixel = (int)(q - image * pixels), spot = place[at];
        const NUMBER g = value(dy[at]);
        if (!on) continue;
        const int i = (pixel / (int)cols * PH + spot / PW) * SH - (int)top + first_row;
        const int j = (pixel % (int)cols * PW + spot % PW) * SW - (int)left;
        const REAL* plane = x + (image * (INDEX)channels + channel) * (INDEX)(height * width);
        own[TILE] += g;
        UNROLLED
        for (int a = 0; a < TILE_ROWS; a++)
            UNROLLED
            for (int b = 0; b < KW; b++) {
                const bool inside = i + a >= 0 && i + a < (int)height && j + b >= 0 && j + b < (int)width;
                if (inside) own[a * KW + b] += g * value(plane[(i + a) * (int)width + j + b]);
            }
    }
    UNROLLED
    for (int k = 0; k <= TILE; k++) sums[k * PITCH + threadIdx.x] = own[k];
    __syncthreads();
    const int k = threadIdx.x / 4, part = threadIdx.x % 4;  // four threads add up what all threads have of one element
    NUMBER sum = 0;
    if (k <= TILE)
        for (int t = part; t < THREADS; t += 4) sum += sums[k * PITCH + t];
    quarters[threadIdx.x] = sum;
    __syncthreads();
    if (part || k > TILE) return;
    sum = quarters[threadIdx.x] + quarters[threadIdx.x + 1] + quarters[threadIdx.x + 2] + quarters[threadIdx.x + 3];
    const int weights = (int)(filters * channels) * (KH * KW), row = first_row + k / KW;
    NUMBER* into = (NUMBER*)parts + (count)chunk * (weights + (int)filters);
    if (k < TILE && row < KH) into[((filter * (int)channels + channel) * KH + row) * KW + k % KW] = sum;
    if (k == TILE && channel == 0 && first_row == 0) into[weights + filter] = sum;
}

// How many pooled rows, and columns, may have looked at one of the image's.
#define REACH_ROWS (((KH + SH - 1) / SH + PH - 2) / PH + 1)
#define REACH_COLS (((KW + SW - 1) / SW + PW - 2) / PW + 1)

// The first pooled pixel along an axis whose windows see an input that many pixels after the padding's start.
static __device__ inline int first_seen(int reach, int kernel, int stride, int pool)
{
    return reach < kernel ? 0 : (reach - kernel + stride) / stride / pool;
}

// dx (B, C, height, width): a thread gathers what one pixel contributed to, in several channels.
extern "C" __global__ void __launch_bounds__(128) pooled_images(const REAL* dy, const bool* active,
                                                                const unsigned char* place, const REAL* weight,
                                                                REAL* dx, count images, count channels, count filters,
                                                                count height, count width, count top, count left,
                                                                count rows, count cols)
{
    const int pixels = (int)(rows * cols), inputs = (int)(height * width);
    const int parts = ((int)channels + CHANNELS - 1) / CHANNELS;
    const INDEX at = (INDEX)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (INDEX)images * parts * inputs) return;
    const int pixel = (int)(at % inputs), channel = (int)(at / inputs % parts) * CHANNELS;
    const INDEX image = at / inputs / parts;
    const int i = pixel / (int)width + (int)top, j = pixel % (int)width + (int)left;
    const int p0 = first_seen(i, KH, SH, PH), q0 = first_seen(j, KW, SW, PW);
    NUMBER sums[CHANNELS] = {};
    for (int f = 0; pixels && f < (int)filters; f++) {
        const INDEX plane = (image * (INDEX)filters + f) * pixels;
        const REAL* w = weight + ((INDEX)f * (int)channels + channel) * (KH * KW);
        UNROLLED
        for (int p = 0; p < REACH_ROWS; p++) {
            NUMBER g[REACH_COLS];
            int tap[REACH_COLS];  // of the kernel, that met the pixel where the maximum was, or -1
            UNROLLED
            for (int q = 0; q < REACH_COLS; q++) {  // reads what it may not need: waiting for all at once is faster
                const int row = min(p0 + p, (int)rows - 1), col = min(q0 + q, (int)cols - 1);
                const INDEX from = plane + row * (int)cols + col;
                const int spot = place[from];
                const bool on = active[from] && row == p0 + p && col == q0 + q;
                const int a = i - (row * PH + spot / PW) * SH, b = j - (col * PW + spot % PW) * SW;
                tap[q] = on && a >= 0 && a < KH && b >= 0 && b < KW ? a * KW + b : -1;
                g[q] = value(dy[from]);
            }
            UNROLLED
            for (int q = 0; q < REACH_COLS; q++)
                UNROLLED
                for (int c = 0; c < CHANNELS; c++) {
                    const int own = channel + c < (int)channels ? c : 0;
                    const NUMBER product = g[q] * value(w[own * (KH * KW) + max(tap[q], 0)]);
                    sums[c] += tap[q] < 0 ? 0 : product;
                }
        }
    }
    UNROLLED
    for (int c = 0; c < CHANNELS; c++)
        if (channel + c < (int)channels) store(dx + (image * (INDEX)channels + channel + c) * inputs + pixel, sums[c]);
}
