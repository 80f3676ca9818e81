// Numbers of one type in another: SOURCE is what is given, REAL what is made. Eight arrays to a launch, since a network's
// parameters are many and mostly small.

[[maybe_unused]] static __device__ inline void convert(const SOURCE* from, REAL* to, count total)
{
    for (count at = first_of_thread(); at < total; at += all_threads()) store(to + at, (NUMBER)value(from[at]));
}

extern "C" __global__ void cast(const SOURCE* a, REAL* to_a, count of_a, const SOURCE* b, REAL* to_b, count of_b,
                                const SOURCE* c, REAL* to_c, count of_c, const SOURCE* d, REAL* to_d, count of_d,
                                const SOURCE* e, REAL* to_e, count of_e, const SOURCE* f, REAL* to_f, count of_f,
                                const SOURCE* g, REAL* to_g, count of_g, const SOURCE* h, REAL* to_h, count of_h)
{
    convert(a, to_a, of_a);
    convert(b, to_b, of_b);
    convert(c, to_c, of_c);
    convert(d, to_d, of_d);
    convert(e, to_e, of_e);
    convert(f, to_f, of_f);
    convert(g, to_g, of_g);
    convert(h, to_h, of_h);
}
