/* The stages of augmentation.c for images of PIXEL. A plane has BLACK pixels of zeros on all sides. */

/* Move an image by whole pixels: x_in = ±x + dx, y_in = y + dy. */
static void OF(shift)(const PIXEL *from, PIXEL *to, const Augment *a, const int64_t *m) {
    const int64_t w = a->width, h = a->height, dx = m[2] >> 16, dy = m[5] >> 16;
    for (int64_t row = 0; row < a->channels * h; row++, to += w) {
        const int64_t y = row % h + dy;
        if (y < 0 || y >= h) {
            memset(to, 0, (size_t)w * sizeof *to);
            continue;
        }
        const PIXEL *source = from + (row + dy) * w;
        /* where ±x + dx lies inside: [first, last) */
        const int64_t first = clipped(m[0] > 0 ? -dx : dx - w + 1, 0, w);
        const int64_t last = clipped(m[0] > 0 ? w - dx : dx + 1, first, w);
        memset(to, 0, (size_t)first * sizeof *to);
        memset(to + last, 0, (size_t)(w - last) * sizeof *to);
        if (m[0] > 0) memcpy(to + first, source + first + dx, (size_t)(last - first) * sizeof *to);
        else for (int64_t x = first; x < last; x++) to[x] = source[dx - x];
    }
}

/* Fetch an image's pixels from anywhere. */
static void OF(warp)(const PIXEL *from, PIXEL *to, const Augment *a, const int64_t *m, PIXEL *plane) {
    const int64_t w = a->width, h = a->height, step = w + 2 * BLACK, near = are_near(m, h, w);
    for (int64_t c = 0; c < a->channels; c++, from += h * w, to += h * w) {
        for (int64_t y = 0; y < h; y++)
            memcpy(plane + (y + BLACK) * step + BLACK, from + y * w, (size_t)w * sizeof *to);
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x += LANES) {
                PIXEL values[LANES];
                OF(fetch)(plane, near ? places(m, x, y, h, w) : far_places(m, x, y, h, w), step, values);
                if (x + LANES <= w) memcpy(to + y * w + x, values, sizeof values);
                else memcpy(to + y * w + x, values, (size_t)(w - x) * sizeof *values);
            }
    }
}

/* Copy or move an image, change its colours, cut out. */
static void OF(change)(const PIXEL *from, PIXEL *to, const Augment *a, const Row *row, PIXEL *plane) {
    const int64_t w = a->width, h = a->height, size = a->channels * h * w;
    int64_t m[6];
    for (int k = 0; k < 6; k++) m[k] = (int64_t)rintf(row->affine[k] * ONE);
    if (!(a->stages & (SHIFT | WARP))) memcpy(to, from, (size_t)size * sizeof *to);
    else if (is_whole(m)) OF(shift)(from, to, a, m);
    else OF(warp)(from, to, a, m, plane);
    if (a->stages & COLOUR) OF(colour)(to, size, row);
    if (!(a->stages & CUTOUT)) return;
    const Box cut = box_of(row->cutout, h, w);
    if (cut.right <= cut.left) return;
    for (int64_t c = 0; c < a->channels; c++)
        for (int64_t y = cut.top; y < cut.bottom; y++)
            memset(to + (c * h + y) * w + cut.left, 0, (size_t)(cut.right - cut.left) * sizeof *to);
}

/* One row of an image with its partner's. */
static void OF(mix_row)(const PIXEL *own, const PIXEL *other, PIXEL *out, const Row *row, Box box, int64_t y,
                        int64_t width) {
    OF(mix)(own, other, out, width, row->mix);
    if (y >= box.top && y < box.bottom && box.right > box.left)
        memcpy(out + box.left, other + box.left, (size_t)(box.right - box.left) * sizeof *out);
}

/* Mix two images with each other; `kept` has room for two rows. */
static void OF(mix_pair)(PIXEL *p, PIXEL *q, const Augment *a, const Row *of_p, const Row *of_q, PIXEL *kept) {
    const int64_t w = a->width, h = a->height;
    const Box at_p = box_of(of_p->box, h, w), at_q = box_of(of_q->box, h, w);
    for (int64_t row = 0; row < a->channels * h; row++, p += w, q += w) {
        memcpy(kept, p, (size_t)w * sizeof *p);
        memcpy(kept + w, q, (size_t)w * sizeof *q);
        OF(mix_row)(kept, kept + w, p, of_p, at_p, row % h, w);
        OF(mix_row)(kept + w, kept, q, of_q, at_q, row % h, w);
    }
}

/* images (count, channels, height, width) -> out; returns whether there was memory. */
EXPORT int OF(augment)(const Augment *a) {
    const int64_t size = a->channels * a->height * a->width, cells = (a->height + 2 * BLACK) * (a->width + 2 * BLACK);
    PIXEL *plane = calloc((size_t)cells + 4, sizeof *plane), *out = a->out; /* bytes are read four at a time */
    if (!plane) return 0;
    for (int64_t i = 0; i < a->count; i++)
        OF(change)((const PIXEL *)a->images + i * size, out + i * size, a, a->table + i, plane);
    if (a->stages & MIX)
        for (int64_t i = 0, j = a->count - 1; i <= j; i++, j--)
            OF(mix_pair)(out + i * size, out + j * size, a, a->table + i, a->table + j, plane);
    free(plane);
    return 1;
}
