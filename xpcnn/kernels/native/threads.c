/* A pool of threads that wait for work: briefly awake, then asleep. One job at a time; who finds the pool taken does
 * all shares alone, one after another, so that a result never depends on who came first. */
#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#define MOST 256
#define SPINS 8000 /* looks for a job before a thread goes to sleep: a few tenths of a millisecond, as the next one is due */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_flag taken = ATOMIC_FLAG_INIT;
static atomic_int jobs, pending, sleepers;
static int workers, job_shares;
static share_fn job_fn;
static void *job_data;

INLINE void breathe(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void *work(void *number) {
    int share = (int)(intptr_t)number & (MOST - 1), seen = (int)((intptr_t)number >> 8);
    for (;;) {
        for (int spin = 0; spin < SPINS && atomic_load(&jobs) == seen; spin++) breathe();
        if (atomic_load(&jobs) == seen) {
            pthread_mutex_lock(&mutex);
            atomic_fetch_add(&sleepers, 1);
            while (atomic_load(&jobs) == seen) pthread_cond_wait(&wake, &mutex);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&mutex);
        }
        seen = atomic_load(&jobs);
        if (share < job_shares) job_fn(job_data, share, job_shares);
        atomic_fetch_sub(&pending, 1);
    }
    return NULL;
}

static void forget_threads(void) { /* in a forked child, where only the forking thread lives on */
    pthread_mutex_init(&mutex, NULL);
    pthread_cond_init(&wake, NULL);
    atomic_flag_clear(&taken);
    atomic_store(&pending, 0);
    atomic_store(&sleepers, 0);
    workers = 0;
}

static void start_threads(int wanted) {
    static int registered;
    if (!registered) registered = !pthread_atfork(NULL, NULL, forget_threads);
    sigset_t all, before; /* signals are the business of the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; workers < wanted && workers < MOST - 1; workers++) {
        pthread_t thread;
        intptr_t number = ((intptr_t)atomic_load(&jobs) << 8) | (workers + 1);
        if (pthread_create(&thread, NULL, work, (void *)number)) break;
        pthread_detach(thread);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void in_shares(share_fn fn, void *job, int shares) {
    int alone = shares < 2 || atomic_flag_test_and_set(&taken);
    if (!alone) start_threads(shares - 1);
    if (alone || workers < shares - 1) {
        for (int share = 0; share < shares; share++) fn(job, share, shares);
        if (!alone) atomic_flag_clear(&taken);
        return;
    }
    job_fn = fn;
    job_data = job;
    job_shares = shares;
    atomic_store(&pending, workers);
    atomic_fetch_add(&jobs, 1);
    pthread_mutex_lock(&mutex); /* a worker that saw no job is either asleep by now or will see this one */
    if (atomic_load(&sleepers)) pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&mutex);
    fn(job, 0, shares);
    for (int spin = 0; atomic_load(&pending); spin++) spin < SPINS ? breathe() : (void)sched_yield();
    atomic_flag_clear(&taken);
}
