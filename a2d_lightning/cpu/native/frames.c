/* Conversion of byte frames [images, stack, places] to floats in [0, 1], channels last: [images, places, stack]. */

#include <stdint.h>

#include "parallel.h"

typedef struct {
    long images, stack, places;
    const uint8_t *frames;
    float *out;
} job;

FOR_EACH_CPU static void some_images(const void *data, long chunk)
{
    const job *j = data;
    long stack = j->stack, places = j->places, first = a2d_begin(j->images, chunk);
    for (long image = first; image < a2d_begin(j->images, chunk + 1); image++) {
        const uint8_t *restrict frames = j->frames + image * stack * places;
        float *restrict out = j->out + image * stack * places;
        if (stack == 4) /* a loop that compilers vectorize */
            for (long p = 0; p < places; p++) {
                out[4 * p] = frames[p] / 255.0f;
                out[4 * p + 1] = frames[places + p] / 255.0f;
                out[4 * p + 2] = frames[2 * places + p] / 255.0f;
                out[4 * p + 3] = frames[3 * places + p] / 255.0f;
            }
        else
            for (long p = 0; p < places; p++)
                for (long s = 0; s < stack; s++)
                    out[stack * p + s] = frames[s * places + p] / 255.0f;
    }
}

/* Writes out. Returns 0. */
int a2d_unit_frames(unsigned threads, long images, long stack, long places,
                    const uint8_t *frames, float *out)
{
    job j = {images, stack, places, frames, out};
    a2d_run(some_images, &j, threads);
    return 0;
}
