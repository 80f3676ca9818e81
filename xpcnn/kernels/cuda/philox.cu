// Random numbers that are NumPy's own: Philox4x64-10 with a key of 128 bits and a counter that starts at 1.

using word = unsigned long long;

// Four words for a value of the counter, by ten rounds.
static __device__ inline void philox(word counter, word key0, word key1, word* out)
{
    word a = counter, b = 0, c = 0, d = 0;
    for (int round = 0; round < 10; round++) {
        const word high0 = __umul64hi(0xD2E7470EE14C6C93ull, a), low0 = 0xD2E7470EE14C6C93ull * a;
        const word high1 = __umul64hi(0xCA5A826395121157ull, c), low1 = 0xCA5A826395121157ull * c;
        a = high1 ^ b ^ key0; b = low1; c = high0 ^ d ^ key1; d = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    out[0] = a; out[1] = b; out[2] = c; out[3] = d;
}

// keys (steps, places, 2) -> kept (total): where the stream's float32 numbers are at least `rate`. Each thread draws
// eight: two of every word, the lower half first, 24 bits of it.
extern "C" __global__ void mask(const word* keys, const count* progress, bool* kept, count total, count place,
                                count places, double rate)
{
    const word* key = keys + (progress[0] * places + place) * 2;
    for (count step = first_of_thread(); step * 8 < total; step += all_threads()) {
        word words[4];
        philox((word)step + 1, key[0], key[1], words);
        for (int i = 0; i < 8 && step * 8 + i < total; i++) {
            const unsigned half = (unsigned)(words[i / 2] >> (i % 2 * 32));
            kept[step * 8 + i] = (float)(half >> 8) * (1.0f / 16777216.0f) >= (float)rate;
        }
    }
}
