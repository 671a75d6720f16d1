/* Three of the four steps between the matrix products of a Llama-shaped decoder, for CPUs; the fourth is attention.c.
 *
 * Compiled on first use by build.py, once for float32 (-DCHORUS_F32) and once for bfloat16; the same functions in plain
 * torch are in ../decoder_steps.py and the tests hold these to those. Sums are in float32 whatever the storage type.
 *
 * Names: n tokens of the batch lie one behind the other; a row is a run of them. H query heads, G key/value heads,
 * D head width. Keys and values of a row: `base` places elsewhere (a prompt's, shared by all its rows), the rest in the
 * row's slot.
 */
#include <math.h>

#include "numbers.h"

/* x += delta (unless NULL), y = x / rms(x) * weight; x, y [n, width]. */
void add_rmsnorm(real *x, const real *delta, const float *weight, real *y, int64_t n, int64_t width, float epsilon) {
#pragma omp parallel for schedule(static) if (n * width > 8192)
    for (int64_t i = 0; i < n; i++) {
        real *row = x + i * width;
        float sum = 0;
        if (delta) {
            const real *add = delta + i * width;
#pragma omp simd
            for (int64_t d = 0; d < width; d++) row[d] = down(up(row[d]) + up(add[d]));
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < width; d++) sum += up(row[d]) * up(row[d]);
        float scale = 1.0f / sqrtf(sum / (float)width + epsilon);
        real *out = y + i * width;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) out[d] = down(up(row[d]) * scale * weight[d]);
    }
}

/* out = silu(gate) * up; both [n, width] beside each other in gate_up [n, 2 width]. */
void silu_mul(const real *gate_up, real *out, int64_t n, int64_t width) {
#pragma omp parallel for schedule(static) if (n * width > 4096)
    for (int64_t i = 0; i < n; i++) {
        const real *gate = gate_up + i * 2 * width, *other = gate + width;
        real *to = out + i * width;
#pragma omp simd
        for (int64_t d = 0; d < width; d++) {
            float g = up(gate[d]), e = exp_negative(g < 0 ? g : -g);
            to[d] = down(up(other[d]) * g * (g < 0 ? e : 1.0f) / (1.0f + e));
        }
    }
}

/* Turn one head by its position (the two halves are the two coordinates), after an RMS norm where there is a weight. */
static void turn(real *head, const float *cos, const float *sin, int64_t D, int64_t turned, const float *weight,
                 float epsilon) {
    if (weight) {
        float sum = 0;
        for (int64_t d = 0; d < D; d++) sum += up(head[d]) * up(head[d]);
        float scale = 1.0f / sqrtf(sum / (float)D + epsilon);
        for (int64_t d = 0; d < D; d++) head[d] = down(up(head[d]) * scale * weight[d]);
    }
    int64_t half = turned / 2;
#pragma omp simd
    for (int64_t d = 0; d < half; d++) {
        float a = up(head[d]), b = up(head[d + half]);
        head[d] = down(a * cos[d] - b * sin[d]);
        head[d + half] = down(b * cos[d] + a * sin[d]);
    }
}

/* Turn queries in place and write keys and values to their slots.
 * qkv [n, (H + 2 G) D], H 0 for keys and values alone; cos, sin [positions, turned / 2]; places [n, 3] = position, slot, place in the slot;
 * keys, values [slots, G, S, D]. */
void place(real *qkv, const float *cos, const float *sin, const int64_t *places, real *keys, real *values, int64_t n,
           int64_t H, int64_t G, int64_t D, int64_t S, int64_t turned, const float *query_weight,
           const float *key_weight, float epsilon) {
#pragma omp parallel for schedule(static) if (n > 4)
    for (int64_t i = 0; i < n; i++) {
        real *q = qkv + i * (H + 2 * G) * D, *k = q + H * D, *v = k + G * D;
        const int64_t *at = places + 3 * i;
        const float *c = cos + at[0] * (turned / 2), *s = sin + at[0] * (turned / 2);
        for (int64_t h = 0; h < H; h++) turn(q + h * D, c, s, D, turned, query_weight, epsilon);
        for (int64_t g = 0; g < G; g++) {
            turn(k + g * D, c, s, D, turned, key_weight, epsilon);
            int64_t to = ((at[1] * G + g) * S + at[2]) * D;
            memcpy(keys + to, k + g * D, D * sizeof(real));
            memcpy(values + to, v + g * D, D * sizeof(real));
        }
    }
}
