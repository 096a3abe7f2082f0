/* Work in chunks on the threads of an OpenMP that the caller names, so that no second one is loaded beside torch's. */

#ifndef A2D_PARALLEL_H
#define A2D_PARALLEL_H

#include <stdatomic.h>

/* Their number is fixed, and so is the order of sums over them, whatever the number of threads. */
enum { CHUNKS = 16 };

/* One version for each generation of x86-64, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FOR_EACH_CPU
#endif

/* Runs function(data) on each of `threads` threads: GCC's GOMP_parallel. */
typedef void (*a2d_parallel)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

typedef struct {
    void (*chunk)(const void *job, long i);
    const void *job;
    atomic_long next;
} a2d_work;

static void a2d_take_chunks(void *data)
{
    a2d_work *work = data;
    long i;
    while ((i = atomic_fetch_add(&work->next, 1)) < CHUNKS)
        work->chunk(work->job, i);
}

/* Calls chunk(job, i) for i in [0, CHUNKS). */
static void a2d_run(void (*chunk)(const void *, long), const void *job, a2d_parallel parallel, unsigned threads)
{
    a2d_work work = {chunk, job, 0};
    if (threads > 1)
        parallel(a2d_take_chunks, &work, threads, 0);
    else
        a2d_take_chunks(&work);
}

/* Where chunk i of n things begins. */
static inline long a2d_begin(long n, long i)
{
    return n * i / CHUNKS;
}

#endif
