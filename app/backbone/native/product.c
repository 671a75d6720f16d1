/* A product with a weight in its plain layout, in bfloat16: for an output weight that is also the word embedding and
 * should not stand in memory twice. Where the processor has no such products there is none (see `has_product`).
 */
#include "numbers.h"

#ifdef PAIRS
#define WIDE 3 /* vectors of outputs in one block */
#define TOKENS 8 /* side by side */
#define STREAMS 8 /* rows of the weight read side by side where few tokens wait for memory */

/* out [TOKENS, WIDE * LANES] of a block turned into `panel` [K / 2][WIDE * LANES]; meanwhile `lines` cache lines of what
 * comes next are fetched. */
static void block(const real *x, const uint32_t *panel, int64_t K, real *out, int64_t V, int64_t rows, const char *next,
                  int64_t lines) {
    __m512 acc[TOKENS][WIDE];
    UNROLL
    for (int t = 0; t < TOKENS; t++)
        UNROLL
        for (int b = 0; b < WIDE; b++) acc[t][b] = _mm512_setzero_ps();
    for (int64_t k = 0; k < K / 2; k++) {
        pairs w[WIDE];
        UNROLL
        for (int b = 0; b < WIDE; b++) w[b] = (pairs)_mm512_load_si512(panel + (k * WIDE + b) * LANES);
        UNROLL
        for (int t = 0; t < TOKENS; t++) {
            pairs both = spread(x + t * K + 2 * k);
            UNROLL
            for (int b = 0; b < WIDE; b++) acc[t][b] = _mm512_dpbf16_ps(acc[t][b], both, w[b]);
        }
        if (k < lines) __builtin_prefetch(next + k * 64, 0, 2);
    }
    UNROLL
    for (int t = 0; t < TOKENS; t++)
        UNROLL
        for (int b = 0; b < WIDE; b++) {
            int64_t left = rows - b * LANES;
            __mmask16 kept = left >= LANES ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
            _mm256_mask_storeu_epi16(out + t * V + b * LANES, kept, (__m256i)_mm512_cvtneps_pbh(acc[t][b]));
        }
}

static void product_many(const real *x, const real *weight, real *out, int64_t n, int64_t K, int64_t V) {
    const int64_t wide = WIDE * LANES, blocks = (V + wide - 1) / wide, tiles = (n + TOKENS - 1) / TOKENS;
#pragma omp parallel
    {
        uint32_t *panel = room(K / 2 * wide * sizeof(uint32_t));
#pragma omp for schedule(static)
        for (int64_t j = 0; j < blocks; j++) {
            int64_t rows = V - j * wide < wide ? V - j * wide : wide;
            const real *from = weight + j * wide * K;
            for (int64_t b = 0; b < WIDE; b++)
                for (int64_t k = 0; k < K; k += 2 * LANES) {
                    const void *lines[LANES];
                    for (int64_t i = 0; i < LANES; i++) {
                        int64_t row = b * LANES + i < rows ? b * LANES + i : rows - 1;
                        lines[i] = from + row * K + k;
                    }
                    transpose(lines, panel + k / 2 * wide + b * LANES, wide);
                }
            int64_t share = j + 1 < blocks ? wide * K * (int64_t)sizeof(real) / 64 / tiles : 0;
            for (int64_t i = 0; i < tiles; i++) { /* the last tile begins early rather than end late */
                int64_t t = i + 1 < tiles ? i * TOKENS : n - TOKENS;
                const char *next = (const char *)(from + wide * K) + i * share * 64;
                block(x + t * K, panel, K, out + t * V + j * wide, V, rows, next, share);
            }
        }
        free(panel);
    }
}

/* out [Q][rows] for up to STREAMS rows of the weight, summed where they lie. */
INLINE void streams(const real *x, const real *weight, real *out, int64_t K, int64_t V, int64_t rows, const int Q) {
    __m512 acc[2][STREAMS];
    const real *w[STREAMS];
    UNROLL
    for (int i = 0; i < STREAMS; i++) {
        w[i] = weight + (i < rows ? i : rows - 1) * K;
        acc[0][i] = acc[1][i] = _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < K; k += 2 * LANES) {
        pairs q[2];
        UNROLL
        for (int t = 0; t < Q; t++) q[t] = (pairs)_mm512_loadu_si512(x + t * K + k);
        UNROLL
        for (int i = 0; i < STREAMS; i++) {
            pairs part = (pairs)_mm512_loadu_si512(w[i] + k);
            __builtin_prefetch(w[i] + STREAMS * K + k);
            UNROLL
            for (int t = 0; t < Q; t++) acc[t][i] = _mm512_dpbf16_ps(acc[t][i], q[t], part);
        }
    }
    UNROLL
    for (int t = 0; t < Q; t++)
        UNROLL
        for (int i = 0; i < STREAMS; i++) {
            float sum = _mm512_reduce_add_ps(acc[t][i]);
            if (i < rows) out[t * V + i] = down(sum);
        }
}

static void product_few(const real *x, const real *weight, real *out, int64_t n, int64_t K, int64_t V) {
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < V; j += STREAMS) {
        int64_t t = 0, rows = V - j < STREAMS ? V - j : STREAMS;
        for (; t + 2 <= n; t += 2) streams(x + t * K, weight + j * K, out + t * V + j, K, V, rows, 2);
        if (t < n) streams(x + t * K, weight + j * K, out + t * V + j, K, V, rows, 1);
    }
}
#endif

/* Whether `product` computes anything: 1 or 0. */
int64_t has_product(void) {
#ifdef PAIRS
    return 1;
#else
    return 0;
#endif
}

/* out [n, V] = x [n, K] times weight [V, K] transposed; K a multiple of 32. */
void product(const real *x, const real *weight, real *out, int64_t n, int64_t K, int64_t V) {
#ifdef PAIRS
    if (n < TOKENS) product_few(x, weight, out, n, K, V);
    else product_many(x, weight, out, n, K, V);
#else
    (void)x, (void)weight, (void)out, (void)n, (void)K, (void)V;
#endif
}
