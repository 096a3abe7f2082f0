/* Weight gradient of a 5x5 depthwise convolution without bias, with padding 2, in channels last:

    of_weight[c, i, j] = sum over images and pixels (v, u) of gradient(v, u)[c] x(stride v + i - 2, stride u + j - 2)[c]

where x is 0 outside the image. */

#include <stdlib.h>
#include <string.h>

#include "parallel.h"

enum { KERNEL = 5, PADDING = KERNEL / 2 };

typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));
typedef float sixteen __attribute__((vector_size(64), aligned(4), may_alias));

typedef struct {
    long images, height, width, channels, out_height, out_width, stride;
    const float *x, *gradient;
    float *sums; /* [CHUNKS, KERNEL, KERNEL, channels] */
} job;

/* Add one row of gradients times one row of inputs to one row of a kernel, for as many channels as a vector holds. */
#define DEFINE_ROW(vector)                                                                                             \
    static inline __attribute__((always_inline)) void row_of_##vector(const job *j, const float *x, const float *g,    \
                                                                      float *kernel)                                   \
    {                                                                                                                  \
        long n = j->channels;                                                                                          \
        vector sums[KERNEL];                                                                                           \
        for (int k = 0; k < KERNEL; k++)                                                                               \
            sums[k] = *(const vector *)(kernel + k * n);                                                               \
        for (long u = 0; u < j->out_width; u++) {                                                                      \
            vector gradient = *(const vector *)(g + u * n);                                                            \
            long left = u * j->stride - PADDING;                                                                       \
            if (left >= 0 && left + KERNEL <= j->width)                                                                \
                for (int k = 0; k < KERNEL; k++)                                                                       \
                    sums[k] += gradient * *(const vector *)(x + (left + k) * n);                                       \
            else                                                                                                       \
                for (int k = 0; k < KERNEL; k++)                                                                       \
                    if (left + k >= 0 && left + k < j->width)                                                          \
                        sums[k] += gradient * *(const vector *)(x + (left + k) * n);                                   \
        }                                                                                                              \
        for (int k = 0; k < KERNEL; k++)                                                                               \
            *(vector *)(kernel + k * n) = sums[k];                                                                     \
    }

DEFINE_ROW(eight)
DEFINE_ROW(sixteen)

FOR_EACH_CPU static void some_images(const void *data, long chunk)
{
    const job *j = data;
    long n = j->channels;
    float *sums = j->sums + chunk * KERNEL * KERNEL * n;
    memset(sums, 0, KERNEL * KERNEL * n * sizeof(float));
    for (long image = a2d_begin(j->images, chunk); image < a2d_begin(j->images, chunk + 1); image++)
        for (long v = 0; v < j->out_height; v++)
            for (long i = 0; i < KERNEL; i++) {
                long y = v * j->stride + i - PADDING, c = 0;
                if (y < 0 || y >= j->height)
                    continue;
                const float *x = j->x + (image * j->height + y) * j->width * n;
                const float *g = j->gradient + (image * j->out_height + v) * j->out_width * n;
                for (; c + 16 <= n; c += 16)
                    row_of_sixteen(j, x + c, g + c, sums + i * KERNEL * n + c);
                for (; c < n; c += 8)
                    row_of_eight(j, x + c, g + c, sums + i * KERNEL * n + c);
            }
}

/* x: [images, height, width, channels], gradient: [images, out_height, out_width, channels], channels a multiple of 8.
Writes of_weight, [channels, KERNEL, KERNEL]. Returns 0, or 1 if memory is short. */
int a2d_depthwise_of_weight(unsigned threads, long images, long height, long width,
                            long channels, long out_height, long out_width, long stride, const float *x,
                            const float *gradient, float *of_weight)
{
    long size = KERNEL * KERNEL * channels;
    job j = {images, height, width, channels, out_height, out_width, stride, x, gradient, malloc(CHUNKS * size * sizeof(float))};
    if (!j.sums)
        return 1;
    a2d_run(some_images, &j, threads);
    for (long k = 0; k < KERNEL * KERNEL; k++)
        for (long c = 0; c < channels; c++) {
            double sum = 0;
            for (long i = 0; i < CHUNKS; i++)
                sum += j.sums[i * size + k * channels + c];
            of_weight[c * KERNEL * KERNEL + k] = sum;
        }
    free(j.sums);
    return 0;
}
