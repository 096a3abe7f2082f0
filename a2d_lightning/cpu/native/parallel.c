#include "parallel.h"

#include <stdatomic.h>

typedef struct {
    void (*chunk)(const void *job, long i);
    const void *job;
    long threads;
    struct { _Alignas(64) atomic_long next; long end; } share[CHUNKS]; /* aligned to avoid false sharing */
} work;

/* GCC's GOMP_parallel, which runs function(data) on `threads` threads, and omp_get_thread_num. */
static void (*run_parallel)(void (*function)(void *), void *data, unsigned threads, unsigned flags);
static int (*thread_number)(void);

void a2d_use_openmp(void (*parallel)(void (*)(void *), void *, unsigned, unsigned), int (*number)(void))
{
    run_parallel = parallel;
    thread_number = number;
}

/* Each thread begins with its own share of the chunks: torch's kernels before and after use the same share, which is
therefore in the thread's cache. Then the thread takes chunks from the other shares. */
static void take_chunks(void *data)
{
    work *w = data;
    long i, first = w->threads > 1 ? thread_number() : 0;
    for (long k = 0; k < w->threads; k++) {
        long owner = (first + k) % w->threads;
        while ((i = atomic_fetch_add(&w->share[owner].next, 1)) < w->share[owner].end)
            w->chunk(w->job, i);
    }
}

void a2d_run(void (*chunk)(const void *, long), const void *job, unsigned threads)
{
    work w = {.chunk = chunk, .job = job, .threads = threads < CHUNKS ? threads : CHUNKS};
    for (long t = 0; t < w.threads; t++) {
        w.share[t].next = CHUNKS * t / w.threads;
        w.share[t].end = CHUNKS * (t + 1) / w.threads;
    }
    if (w.threads > 1)
        run_parallel(take_chunks, &w, w.threads, 0);
    else
        take_chunks(&w);
}
