/* Work in chunks on the threads of an OpenMP that the caller names, so that no second one is loaded beside torch's. */

#ifndef A2D_PARALLEL_H
#define A2D_PARALLEL_H

/* Their number is fixed, and so is the order of sums over them, whatever the number of threads. */
enum { CHUNKS = 16 };

/* One version for each generation of x86-64, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FOR_EACH_CPU
#endif

/* Where chunk i of n things begins. */
static inline long a2d_begin(long n, long i)
{
    return n * i / CHUNKS;
}

/* Calls chunk(job, i) for i in [0, CHUNKS), on so many threads. */
void a2d_run(void (*chunk)(const void *job, long i), const void *job, unsigned threads);

#endif
