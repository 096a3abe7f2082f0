/* out = sum over k of weights[k] terms[k], and the backward, in one pass over each tensor:
    gradient of weights[k]: the dot product of gradient and terms[k]
    gradient of terms[k]: weights[k] gradient */

#include <stdlib.h>

#include "parallel.h"

enum { BLOCK = 1024 }; /* elements of out or gradient that stay in the L1 cache for all terms */

typedef struct {
    long elements, count;
    const float *weights, *const *terms, *gradient;
    float *out, *const *of_terms;
    double *dots; /* [CHUNKS, count] */
} job;

FOR_EACH_CPU static void add_up(const void *data, long chunk)
{
    const job *j = data;
    long end = a2d_begin(j->elements, chunk + 1);
    for (long first = a2d_begin(j->elements, chunk); first < end; first += BLOCK) {
        long size = first + BLOCK < end ? BLOCK : end - first;
        float *restrict out = j->out + first;
        for (long k = 0; k < j->count; k++) {
            const float *restrict term = j->terms[k] + first, weight = j->weights[k];
            if (k == 0)
                for (long e = 0; e < size; e++)
                    out[e] = weight * term[e];
            else
                for (long e = 0; e < size; e++)
                    out[e] += weight * term[e];
        }
    }
}

FOR_EACH_CPU static void hand_down(const void *data, long chunk)
{
    enum { LANES = 16 };
    const job *j = data;
    long end = a2d_begin(j->elements, chunk + 1);
    double *dots = j->dots + chunk * j->count;
    for (long k = 0; k < j->count; k++)
        dots[k] = 0;
    for (long first = a2d_begin(j->elements, chunk); first < end; first += BLOCK) {
        long size = first + BLOCK < end ? BLOCK : end - first;
        const float *restrict gradient = j->gradient + first;
        for (long k = 0; k < j->count; k++) {
            const float *restrict term = j->terms[k] + first, weight = j->weights[k];
            float *restrict of_term = j->of_terms[k] + first, sums[LANES] = {0}, sum = 0;
            long e = 0;
            for (; e + LANES <= size; e += LANES)
                for (long lane = 0; lane < LANES; lane++) {
                    sums[lane] += gradient[e + lane] * term[e + lane];
                    of_term[e + lane] = weight * gradient[e + lane];
                }
            for (; e < size; e++) {
                sum += gradient[e] * term[e];
                of_term[e] = weight * gradient[e];
            }
            for (long lane = 0; lane < LANES; lane++)
                sum += sums[lane];
            dots[k] += sum;
        }
    }
}

/* terms: `count` tensors of `elements` elements. Writes out. Returns 0. */
int a2d_weighted_sum(unsigned threads, long elements, long count, const float *weights,
                     const float *const *terms, float *out)
{
    job j = {.elements = elements, .count = count, .weights = weights, .terms = terms, .out = out};
    a2d_run(add_up, &j, threads);
    return 0;
}

/* gradient: of out. Writes the gradients of_weights and of_terms. Returns 0, or 1 if memory is short. */
int a2d_weighted_sum_backward(unsigned threads, long elements, long count, const float *weights,
                              const float *const *terms, const float *gradient, float *of_weights,
                              float *const *of_terms)
{
    job j = {.elements = elements, .count = count, .weights = weights, .terms = terms, .gradient = gradient,
             .of_terms = of_terms, .dots = malloc(CHUNKS * count * sizeof(double))};
    if (!j.dots)
        return 1;
    a2d_run(hand_down, &j, threads);
    for (long k = 0; k < count; k++) {
        double dot = 0;
        for (long i = 0; i < CHUNKS; i++)
            dot += j.dots[i * count + k];
        of_weights[k] = dot;
    }
    free(j.dots);
    return 0;
}
