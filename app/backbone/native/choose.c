/* The most likely token of each row and whether all the row's numbers are finite, in one pass over the logits. */
#include <float.h>

#include "numbers.h"

#define PIECE 2048 /* numbers looked at before the best one's place is looked for */

#define EXPONENT 0x7f800000 /* all ones: infinity or NaN */

/* Largest of `count` numbers; `odd` becomes 1 if any is not finite. */
static float largest(const real *x, int64_t count, int *odd) {
    vec peak[4];
    lanes whole[4];
    for (int i = 0; i < 4; i++) peak[i] = (vec){0} - FLT_MAX, whole[i] = (lanes){0};
    int64_t j = 0;
    for (; j + 4 * LANES <= count; j += 4 * LANES)
        UNROLL
        for (int i = 0; i < 4; i++) {
            vec next = load(x + j + i * LANES);
            lanes more = next > peak[i];
            peak[i] = (vec)(((lanes)next & more) | ((lanes)peak[i] & ~more));
            whole[i] |= ((lanes)next & EXPONENT) == EXPONENT;
        }
    float best = -FLT_MAX;
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < LANES; l++) {
            best = peak[i][l] > best ? peak[i][l] : best;
            if (whole[i][l]) *odd = 1;
        }
    for (; j < count; j++) {
        float next = up(x[j]);
        best = next > best ? next : best;
        union { float f; int32_t bits; } look = {next};
        if ((look.bits & EXPONENT) == EXPONENT) *odd = 1;
    }
    return best;
}

/* token [n] = place of the first largest of each row of logits [n, V], -1 where a number is not finite. */
void choose(const real *logits, int64_t *token, int64_t n, int64_t V) {
#pragma omp parallel for schedule(static) if (n * V > 16384)
    for (int64_t i = 0; i < n; i++) {
        const real *row = logits + i * V;
        float best = -FLT_MAX;
        int odd = 0;
        int64_t piece = 0;
        for (int64_t j = 0; j < V; j += PIECE) {
            float here = largest(row + j, V - j < PIECE ? V - j : PIECE, &odd);
            if (here > best) best = here, piece = j;
        }
        int64_t at = piece;
        while (at + 1 < V && up(row[at]) != best) at++;
        token[i] = odd ? -1 : at;
    }
}
