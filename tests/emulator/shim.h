// Runs CUDA C++ on a CPU: one thread at a time, each with a stack of its own where a kernel waits for others.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

struct Three { unsigned x = 1, y = 1, z = 1; };
static Three gridDim, blockDim, blockIdx, threadIdx;
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads() emulator::wait()
#define __restrict__
static inline float __ldg(const float* p) { return *p; }
static inline double __ldg(const double* p) { return *p; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
template <class T> static inline T min(T a, T b) { return b < a ? b : a; }

namespace emulator {

static const size_t STACK = 1 << 16;
static const unsigned MOST = 1024;
static ucontext_t home, fibers[MOST];
static char *stacks, done[MOST];
static unsigned running;
static bool alone;
static const void* job;          // the kernel with its arguments
static void (*call)(const void*);  // which runs it for one thread

static inline void wait()
{
    if (alone) abort();  // a kernel that was taken for one that never waits
    swapcontext(&fibers[running], &home);
}

static void body()
{
    call(job);
    done[running] = 1;
}

// Which thread's turn it is: another order in each block and after each wait, since none may be relied upon.
static unsigned turn(unsigned t, unsigned threads, unsigned salt)
{
    const bool power_of_two = (threads & (threads - 1)) == 0;
    return power_of_two ? (t * 167u + salt * 13u) % threads : (salt % 2 ? threads - 1 - t : t);
}

// All threads of a block up to where each waits, again and again until all are done.
static void run_block(unsigned threads)
{
    for (unsigned t = 0; t < threads; t++) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = &stacks[t * STACK];
        fibers[t].uc_stack.ss_size = STACK;
        fibers[t].uc_link = &home;
        makecontext(&fibers[t], body, 0);
        done[t] = 0;
    }
    for (unsigned left = threads, salt = blockIdx.x; left; salt++) {
        left = 0;
        for (unsigned i = 0; i < threads; i++) {
            const unsigned t = turn(i, threads, salt);
            if (done[t]) continue;
            running = t;
            threadIdx.x = t;
            swapcontext(&home, &fibers[t]);
            left += !done[t];
        }
        if (left && left < threads) {
            fputs("emulator: some threads of a block wait for others that have ended\n", stderr);
            abort();
        }
    }
}

template <class Kernel>
static void run(unsigned blocks, unsigned threads, bool waits, Kernel kernel)
{
    gridDim.x = blocks;
    blockDim.x = threads;
    job = &kernel;
    call = [](const void* given) { (*(const Kernel*)given)(); };
    alone = !waits;
    if (waits && !stacks) stacks = (char*)malloc(MOST * STACK);
    for (unsigned b = blocks; b-- > 0;) {
        blockIdx.x = b;
        if (waits) { run_block(threads); continue; }
        for (unsigned t = 0; t < threads; t++) {
            threadIdx.x = turn(t, threads, b);
            kernel();
        }
    }
    job = nullptr;
}

}  // namespace emulator
