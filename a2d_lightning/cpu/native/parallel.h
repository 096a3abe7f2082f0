/* Run work in chunks on the threads of torch's OpenMP, which the caller passes: no second OpenMP is loaded. */

#ifndef A2D_PARALLEL_H
#define A2D_PARALLEL_H

/* Fixed, as is the order of sums over chunks: results do not depend on the number of threads. */
enum { CHUNKS = 16 };

/* Compile a function for each generation of x86-64; the version is selected when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FOR_EACH_CPU
#endif

/* Return the index of the first of n items that belongs to chunk i. */
static inline long a2d_begin(long n, long i)
{
    return n * i / CHUNKS;
}

/* Call chunk(job, i) for each i in [0, CHUNKS) on `threads` threads. */
void a2d_run(void (*chunk)(const void *job, long i), const void *job, unsigned threads);

#endif
