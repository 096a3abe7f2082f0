/* One step of RMSProp without momentum over many tensors, in one pass over each:
    square = alpha square + (1 - alpha) gradient^2,   weight = weight - rate gradient / (sqrt(square) + eps) */

#include <math.h>

#include "parallel.h"

typedef struct {
    long count, elements;
    const long *sizes;
    float *const *weights, *const *squares;
    const float *const *gradients;
    float rate, alpha, rest, eps;
} job;

static inline long larger(long a, long b)
{
    return a > b ? a : b;
}

FOR_EACH_CPU static void step(const void *data, long chunk)
{
    const job *j = data;
    long first = a2d_begin(j->elements, chunk), end = a2d_begin(j->elements, chunk + 1), begin = 0;
    float rate = j->rate, alpha = j->alpha, rest = j->rest, eps = j->eps;
    for (long k = 0; k < j->count; begin += j->sizes[k++]) {
        float *restrict weight = j->weights[k], *restrict square = j->squares[k];
        const float *restrict gradient = j->gradients[k];
        long last = end - begin < j->sizes[k] ? end - begin : j->sizes[k];
        for (long e = larger(first - begin, 0); e < last; e++) {
            square[e] = alpha * square[e] + rest * gradient[e] * gradient[e];
            weight[e] -= rate * (gradient[e] / (sqrtf(square[e]) + eps));
        }
    }
}

/* sizes, weights, gradients, squares: one entry for each of `count` tensors, which have `elements` elements together.
Updates weights and squares. Returns 0. */
int a2d_rmsprop(unsigned threads, long count, long elements, double rate, double alpha,
                double eps, const long *sizes, float *const *weights, const float *const *gradients,
                float *const *squares)
{
    job j = {.count = count, .elements = elements, .sizes = sizes, .weights = weights, .squares = squares,
             .gradients = gradients, .rate = rate, .alpha = alpha, .rest = 1 - alpha, .eps = eps};
    a2d_run(step, &j, threads);
    return 0;
}
