// Batches out of a data set that lies on the device, augmented as xpcnn/kernels/augmentation.py defines it: bytes come
// out the same to the last bit. REAL is what batches are stored as; SOURCE what the data set is; LOSS what
// probabilities are. Each thread makes one pixel.

static const int ONE = 65536;  // of positions, gains, offsets and shares
static const int UNIT = 2048;  // of an interpolation's weights
enum { SHIFT = 1, WARP = 2, COLOUR = 4, CUTOUT = 8, MIX = 16 };        // stages
enum { GAIN = 6, OFFSET = 7, CUT_BOX = 8, OWN = 12, MIX_BOX = 13, SHARE = 17, COLUMNS = 18 };  // of a table's row

struct Place {
    int y, x, height, width;
};

[[maybe_unused]] static __device__ inline count fixed(float x, float unit) { return (count)rintf(__fmul_rn(x, unit)); }
[[maybe_unused]] static __device__ inline bool within(const float* box, Place p)
{
    return (float)p.y >= box[0] && (float)p.y < box[2] && (float)p.x >= box[1] && (float)p.x < box[3];
}

// Bytes are computed as whole numbers, rounded after each stage; floats as they are.
[[maybe_unused]] static __device__ inline int widened(unsigned char x) { return x; }
template <class T>
static __device__ inline auto widened(T x) { return value(x); }

[[maybe_unused]] static __device__ inline int between(int a, int b, int c, int d, int right, int lower)
{
    const int upper = a * (UNIT - right) + b * right, under = c * (UNIT - right) + d * right;
    return (upper * (UNIT - lower) + under * lower + UNIT * UNIT / 2) >> 22;
}
template <class T>
static __device__ inline T between(T a, T b, T c, T d, int right, int lower)
{
    const T r = (T)right / UNIT, l = (T)lower / UNIT;
    const T upper = a * (1 - r) + b * r, under = c * (1 - r) + d * r;
    return upper * (1 - l) + under * l;
}

[[maybe_unused]] static __device__ inline int coloured(int x, const float* row)
{
    const count y = (fixed(row[GAIN], ONE) * x + fixed(row[OFFSET], 255.0f * ONE) + ONE / 2) >> 16;
    return (int)(y < 0 ? 0 : y > 255 ? 255 : y);
}
template <class T>
static __device__ inline T coloured(T x, const float* row)
{
    const T y = (T)row[GAIN] * x + (T)row[OFFSET];
    return y < 0 ? 0 : y > 1 ? 1 : y;
}

[[maybe_unused]] static __device__ inline int mixed(int own, int other, float share)
{
    const count part = fixed(share, ONE);
    return (int)((part * own + (ONE - part) * other + ONE / 2) >> 16);
}
template <class T>
static __device__ inline T mixed(T own, T other, float share) { return (T)share * own + (1 - (T)share) * other; }

// A plane's pixel, or 0 outside.
template <class T>
static __device__ inline auto pixel_at(const T* plane, count y, count x, Place p)
{
    const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
    return inside ? widened(plane[y * p.width + x]) : 0;
}

// What a plane's pixel is before it is mixed.
template <class T>
static __device__ inline auto changed(const T* plane, const float* row, count stages, Place p)
{
    decltype(widened(plane[0])) pixel = 0;
    if (stages & CUTOUT && within(row + CUT_BOX, p)) return pixel;
    if (stages & (SHIFT | WARP)) {
        const count a = fixed(row[0], ONE) * p.x + fixed(row[1], ONE) * p.y + fixed(row[2], ONE) + ONE / UNIT / 2;
        const count b = fixed(row[3], ONE) * p.x + fixed(row[4], ONE) * p.y + fixed(row[5], ONE) + ONE / UNIT / 2;
        const count x = a >> 16, y = b >> 16;
        pixel = pixel_at(plane, y, x, p);
        if (stages & WARP)
            pixel = between(pixel, pixel_at(plane, y, x + 1, p), pixel_at(plane, y + 1, x, p),
                            pixel_at(plane, y + 1, x + 1, p), (int)(a >> 5 & (UNIT - 1)), (int)(b >> 5 & (UNIT - 1)));
    } else {
        pixel = widened(plane[p.y * p.width + p.x]);
    }
    return stages & COLOUR ? coloured(pixel, row) : pixel;
}

// images (N, C, H, W), labels (N), order (N), table (N, COLUMNS): the next `images_out` of the order -> x (images_out,
// C, H, W), and their labels t (images_out) or, where `shares` is given, probabilities (images_out, classes)
extern "C" __global__ void gather_augmented(const SOURCE* images, const count* labels, const count* order,
                                            const count* progress, const float* table, REAL* x, count* t, LOSS* shares,
                                            count images_out, count channels, count height, count width,
                                            count batch_size, count stages, count classes, double scale, double shift)
{
    const count* chosen = order + progress[0] * batch_size;
    const float* rows = table + progress[0] * batch_size * COLUMNS;
    const NUMBER factor = (NUMBER)scale, less = (NUMBER)shift;
    const count area = height * width, pixels = channels * area;
    for (count at = first_of_thread(); at < images_out * pixels; at += all_threads()) {
        const INDEX image = (INDEX)at / (INDEX)pixels, place = (INDEX)(at - image * pixels);
        const INDEX channel = place / (INDEX)area, inside = place - channel * (INDEX)area;
        const INDEX y = inside / (INDEX)width;
        const Place p = {(int)y, (int)(inside - y * (INDEX)width), (int)height, (int)width};
        const float* row = rows + image * COLUMNS;
        auto pixel = changed(images + chosen[image] * pixels + channel * area, row, stages, p);
        if (stages & MIX) {
            const count partner = images_out - 1 - image;
            const SOURCE* other = images + chosen[partner] * pixels + channel * area;
            const auto theirs = changed(other, rows + partner * COLUMNS, stages, p);
            pixel = within(row + MIX_BOX, p) ? theirs : mixed(pixel, theirs, row[OWN]);
        }
        store(x + at, rounded_product((NUMBER)pixel, factor) - less);
    }
    if (shares) {
        for (count at = first_of_thread(); at < images_out * classes; at += all_threads()) {
            const count image = at / classes, k = at - image * classes;
            const float own = rows[image * COLUMNS + SHARE];
            store(shares + at, own * (float)(labels[chosen[image]] == k) +
                                   (1.0f - own) * (float)(labels[chosen[images_out - 1 - image]] == k));
        }
    } else {
        for (count at = first_of_thread(); at < images_out; at += all_threads()) t[at] = labels[chosen[at]];
    }
}
