// Runs CUDA C++ on a CPU: one thread at a time, each with a stack of its own where a kernel waits for others.
#include <cmath>
#include <cstdlib>
#include <functional>
#include <ucontext.h>
#include <vector>

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
using std::max;
using std::min;

namespace emulator {

static const size_t STACK = 1 << 16;
static ucontext_t home;
static std::vector<ucontext_t> fibers;
static std::vector<char> stacks, done;
static unsigned running;
static bool alone;
static const std::function<void()>* job;

static inline void wait()
{
    if (alone) abort();  // a kernel that was taken for one that never waits
    swapcontext(&fibers[running], &home);
}

static void body()
{
    (*job)();
    done[running] = 1;
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
    for (unsigned left = threads; left;) {
        left = 0;
        for (unsigned t = 0; t < threads; t++) {
            if (done[t]) continue;
            running = t;
            threadIdx.x = t;
            swapcontext(&home, &fibers[t]);
            left += !done[t];
        }
    }
}

static void run(unsigned blocks, unsigned threads, bool waits, const std::function<void()>& kernel)
{
    gridDim.x = blocks;
    blockDim.x = threads;
    job = &kernel;
    alone = !waits;
    if (waits && fibers.size() < threads) {
        fibers.resize(threads);
        done.resize(threads);
        stacks.resize(threads * STACK);
    }
    for (unsigned b = 0; b < blocks; b++) {
        blockIdx.x = b;
        if (waits) { run_block(threads); continue; }
        for (unsigned t = 0; t < threads; t++) {
            threadIdx.x = t;
            kernel();
        }
    }
}

}  // namespace emulator
