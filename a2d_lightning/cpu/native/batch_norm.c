/* Batch norm with the statistics of the batch, with or without a following ReLU. Rows are pixels of `channels` floats.

Forward, for each channel c, over all rows r:
    mean = sum x / rows,   invstd = 1 / sqrt(sum (x - mean)^2 / rows + eps)
    z = scale x + shift,   scale = weight invstd,   shift = bias - mean scale,   y = max(z, 0) or z
Backward, with h = the gradient of z:
    gradient of bias: S = sum h
    gradient of weight: Q invstd,   Q = sum h (x - mean)
    gradient of x: scale (h - S / rows - (x - mean) invstd^2 Q / rows)
The ReLU passes NaN on, as torch's does. */

#include <math.h>
#include <stdlib.h>

#include "parallel.h"

enum { ROWS_SUMMED_IN_FLOAT = 64 };

typedef struct {
    long rows, channels;
    int relu;
    const float *x, *gradient, *mean, *scale, *shift;
    const float *of_x, *constant; /* of the backward: scale h + of_x x + constant */
    float *out;
    double *sums; /* [CHUNKS, 2, channels] */
} job;

FOR_EACH_CPU static void moments(const void *data, long chunk)
{
    const job *j = data;
    long n = j->channels, end = a2d_begin(j->rows, chunk + 1);
    double *sum = j->sums + chunk * 2 * n, *square = sum + n;
    const float *restrict pivot = j->mean;
    float s[n], q[n];
    for (long c = 0; c < n; c++)
        sum[c] = square[c] = 0;
    for (long first = a2d_begin(j->rows, chunk); first < end; first += ROWS_SUMMED_IN_FLOAT) {
        long last = first + ROWS_SUMMED_IN_FLOAT < end ? first + ROWS_SUMMED_IN_FLOAT : end, r = first;
        for (long c = 0; c < n; c++)
            s[c] = q[c] = 0;
        for (; r + 4 <= last; r += 4) { /* four rows for each load and store of the sums */
            const float *restrict a = j->x + r * n, *restrict b = a + n, *restrict d = b + n, *restrict e = d + n;
            for (long c = 0; c < n; c++) {
                float u = a[c] - pivot[c], v = b[c] - pivot[c], w = d[c] - pivot[c], x = e[c] - pivot[c];
                s[c] += (u + v) + (w + x);
                q[c] += (u * u + v * v) + (w * w + x * x);
            }
        }
        for (; r < last; r++)
            for (long c = 0; c < n; c++) {
                float u = j->x[r * n + c] - pivot[c];
                s[c] += u;
                q[c] += u * u;
            }
        for (long c = 0; c < n; c++) {
            sum[c] += s[c];
            square[c] += q[c];
        }
    }
}

FOR_EACH_CPU static void normalize(const void *data, long chunk)
{
    const job *j = data;
    long n = j->channels, end = a2d_begin(j->rows, chunk + 1);
    const float *restrict scale = j->scale, *restrict shift = j->shift;
    for (long r = a2d_begin(j->rows, chunk); r < end; r++) {
        const float *restrict x = j->x + r * n;
        float *restrict y = j->out + r * n;
        if (j->relu)
            for (long c = 0; c < n; c++) {
                float z = scale[c] * x[c] + shift[c];
                y[c] = z < 0 ? 0 : z;
            }
        else
            for (long c = 0; c < n; c++)
                y[c] = scale[c] * x[c] + shift[c];
    }
}

FOR_EACH_CPU static void gradient_sums(const void *data, long chunk)
{
    const job *j = data;
    long n = j->channels, end = a2d_begin(j->rows, chunk + 1);
    double *sum = j->sums + chunk * 2 * n, *product = sum + n;
    const float *restrict scale = j->scale, *restrict shift = j->shift, *restrict mean = j->mean;
    float s[n], q[n];
    for (long c = 0; c < n; c++)
        sum[c] = product[c] = 0;
    for (long first = a2d_begin(j->rows, chunk); first < end; first += ROWS_SUMMED_IN_FLOAT) {
        long last = first + ROWS_SUMMED_IN_FLOAT < end ? first + ROWS_SUMMED_IN_FLOAT : end;
        for (long c = 0; c < n; c++)
            s[c] = q[c] = 0;
        for (long r = first; r < last; r++) {
            const float *restrict x = j->x + r * n, *restrict g = j->gradient + r * n;
            if (j->relu)
                for (long c = 0; c < n; c++) {
                    float h = scale[c] * x[c] + shift[c] <= 0 ? 0 : g[c];
                    s[c] += h;
                    q[c] += h * (x[c] - mean[c]);
                }
            else
                for (long c = 0; c < n; c++) {
                    s[c] += g[c];
                    q[c] += g[c] * (x[c] - mean[c]);
                }
        }
        for (long c = 0; c < n; c++) {
            sum[c] += s[c];
            product[c] += q[c];
        }
    }
}

FOR_EACH_CPU static void gradient_of_x(const void *data, long chunk)
{
    const job *j = data;
    long n = j->channels, end = a2d_begin(j->rows, chunk + 1);
    const float *restrict scale = j->scale, *restrict shift = j->shift;
    const float *restrict of_x = j->of_x, *restrict constant = j->constant;
    for (long r = a2d_begin(j->rows, chunk); r < end; r++) {
        const float *restrict x = j->x + r * n, *restrict g = j->gradient + r * n;
        float *restrict out = j->out + r * n;
        if (j->relu)
            for (long c = 0; c < n; c++) {
                float h = scale[c] * x[c] + shift[c] <= 0 ? 0 : g[c];
                out[c] = scale[c] * h + (of_x[c] * x[c] + constant[c]);
            }
        else
            for (long c = 0; c < n; c++)
                out[c] = scale[c] * g[c] + (of_x[c] * x[c] + constant[c]);
    }
}

static void affine(const job *j, const float *weight, const float *bias, const float *invstd, float *scale, float *shift)
{
    for (long c = 0; c < j->channels; c++) {
        scale[c] = weight[c] * invstd[c];
        shift[c] = bias[c] - j->mean[c] * scale[c];
    }
}

static double summed(const job *j, long which, long c)
{
    double sum = 0;
    for (long i = 0; i < CHUNKS; i++)
        sum += j->sums[(2 * i + which) * j->channels + c];
    return sum;
}

static double *sums_of(long channels)
{
    return malloc(2 * CHUNKS * channels * sizeof(double));
}

/* x, y: [rows, channels]. weight, bias: [channels]. Writes y and statistics, [2, channels]: mean and invstd. Updates
running_mean and running_var with `momentum`, unless both are NULL. Returns 0, or 1 if memory is short. */
int a2d_batch_norm(unsigned threads, long rows, long channels, int relu, double eps,
                   double momentum, const float *x, const float *weight, const float *bias, float *running_mean,
                   float *running_var, float *statistics, float *y)
{
    float *mean = statistics, *invstd = statistics + channels, scale[channels], shift[channels];
    job j = {.rows = rows, .channels = channels, .relu = relu, .x = x, .mean = mean, .scale = scale, .shift = shift,
             .out = y, .sums = sums_of(channels)};
    if (!j.sums)
        return 1;
    /* sum squares around a pivot near the mean: sums around zero would lose precision by cancellation */
    for (long c = 0; c < channels; c++) {
        float sum = 0;
        for (long i = 0; i < CHUNKS; i++)
            sum += x[a2d_begin(rows, i) * channels + c];
        mean[c] = sum / CHUNKS;
    }
    a2d_run(moments, &j, threads);
    for (long c = 0; c < channels; c++) {
        double from_pivot = summed(&j, 0, c) / rows;
        double variance = summed(&j, 1, c) / rows - from_pivot * from_pivot;
        variance = variance < 0 ? 0 : variance;
        mean[c] += from_pivot;
        invstd[c] = 1 / sqrt(variance + eps);
        if (running_mean) {
            running_mean[c] += momentum * (mean[c] - running_mean[c]);
            running_var[c] += momentum * (variance * rows / (rows - 1) - running_var[c]);
        }
    }
    affine(&j, weight, bias, invstd, scale, shift);
    a2d_run(normalize, &j, threads);
    free(j.sums);
    return 0;
}

/* gradient: of y. statistics: from the forward. Writes the gradient of x to of_x, [rows, channels], and those of weight
and bias to of_affine, [2, channels]. Returns 0, or 1 if memory is short. */
int a2d_batch_norm_backward(unsigned threads, long rows, long channels, int relu,
                            const float *x, const float *weight, const float *bias, const float *statistics,
                            const float *gradient, float *of_x, float *of_affine)
{
    const float *invstd = statistics + channels;
    float scale[channels], shift[channels], factor[channels], constant[channels];
    job j = {.rows = rows, .channels = channels, .relu = relu, .x = x, .gradient = gradient, .mean = statistics,
             .scale = scale, .shift = shift, .of_x = factor, .constant = constant, .out = of_x,
             .sums = sums_of(channels)};
    if (!j.sums)
        return 1;
    affine(&j, weight, bias, invstd, scale, shift);
    a2d_run(gradient_sums, &j, threads);
    for (long c = 0; c < channels; c++) {
        double sum = summed(&j, 0, c), product = summed(&j, 1, c);
        of_affine[c] = product * invstd[c];
        of_affine[channels + c] = sum;
        double slope = scale[c] * (double)invstd[c] * invstd[c] * product / rows;
        factor[c] = -slope;
        constant[c] = slope * statistics[c] - scale[c] * sum / rows;
    }
    a2d_run(gradient_of_x, &j, threads);
    free(j.sums);
    return 0;
}
