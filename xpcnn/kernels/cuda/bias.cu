// y += bias along one axis, in place: y (outer, channels, inner). Every thread takes packs of 16 bytes, and finds its
// channel by one division.

#ifndef REAL_BIAS
#define REAL_BIAS REAL
#endif

constexpr int LANES = 16 / sizeof(REAL);

struct alignas(16) Pack {
    REAL at[LANES];
};

extern "C" __global__ void add_bias(REAL* y, const REAL_BIAS* bias, count total, count channels, count inner)
{
    const INDEX row = (INDEX)inner;
    const INDEX all = (INDEX)channels;
    const count packs = (count)y % 16 == 0 ? total / LANES : 0;
    for (count at = first_of_thread(); at < packs; at += all_threads()) {
        Pack pack = ((Pack*)y)[at];
        const INDEX first = (INDEX)(at * LANES);
        INDEX along = first % row;
        INDEX channel = first / row % all;
        for (int lane = 0; lane < LANES; lane++) {
            store(&pack.at[lane], (NUMBER)(value(pack.at[lane]) + value(bias[channel])));
            if (++along == row) {
                along = 0;
                if (++channel == all) channel = 0;
            }
        }
        ((Pack*)y)[at] = pack;
    }
    for (count at = packs * LANES + first_of_thread(); at < total; at += all_threads())
        store(y + at, (NUMBER)(value(y[at]) + value(bias[(INDEX)at / row % all])));
}
