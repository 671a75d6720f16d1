/* Attention for CPUs: exact lengths, no masks, no copies; names as in kernels.c.
 *
 * Two forms. Up to QUERIES queries of a key/value head go side by side, sums in the lanes of a vector (a decode step).
 * More of them, up to LANES, sit in the lanes themselves: a key's number is spread over all lanes and nothing has to be
 * folded (prefill, and decode where many heads share a key).
 */
#include <float.h>

#include "numbers.h"

#define AHEAD 16 /* lines of keys, and of values */
#define FETCH(place) __builtin_prefetch(place, 0, 2) /* into the second cache: more lines can be on their way than to L1 */
#define QUERIES 4 /* computed side by side: they share the loads of keys and values */

/* The sums of 16 vectors, as one vector. */
static inline vec sums(vec a[LANES]) {
    const lanes even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
    const lanes odd = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
#define FOLD(x, y) (__builtin_shuffle(x, y, even) + __builtin_shuffle(x, y, odd))
    for (int i = 0; i < 8; i++) a[i] = FOLD(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 4; i++) a[i] = FOLD(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 2; i++) a[i] = FOLD(a[2 * i], a[2 * i + 1]);
    return FOLD(a[0], a[1]);
}

/* scores[t][j] = q[t] . keys[j] for `count` keys, while their values are on their way; q [QUERIES, D] float32; scores'
 * rows are `stride` apart. */
INLINE void dot_keys(const float *q, const real *keys, const real *values, int64_t count, int64_t D, float *scores,
                     int64_t stride, const int Q) {
    const int K = LANES / Q; /* keys at a time */
    int64_t j = 0;
    for (; j + K <= count; j += K) {
        if (Q == 1) /* one query waits for memory, several for arithmetic */
            UNROLL
            for (int i = 0; i < K; i++)
                for (int64_t d = 0; d < D; d += LINE) {
                    FETCH(keys + (j + K + i) * D + d);
                    FETCH(values + (j + i) * D + d);
                }
        vec acc[LANES];
        UNROLL
        for (int i = 0; i < LANES; i++) acc[i] = (vec){0};
        for (int64_t d = 0; d < D; d += LANES) {
            vec k[LANES];
            UNROLL
            for (int i = 0; i < K; i++) k[i] = load(keys + (j + i) * D + d);
            UNROLL
            for (int t = 0; t < Q; t++) {
                vec part = *(const vec *)(q + t * D + d);
                UNROLL
                for (int i = 0; i < K; i++) acc[t * K + i] += part * k[i];
            }
        }
        vec total = sums(acc);
        UNROLL
        for (int t = 0; t < Q; t++) memcpy(scores + t * stride + j, (float *)&total + t * K, K * sizeof(float));
    }
    for (; j < count; j++)
        UNROLL
        for (int t = 0; t < Q; t++) {
            float sum = 0;
            for (int64_t d = 0; d < D; d++) sum += q[t * D + d] * up(keys[j * D + d]);
            scores[t * stride + j] = sum;
        }
}

/* out[t] += sum of p[t][j] values[j], in blocks of `B` vectors of the head's width. */
INLINE void add_block(const float *p, int64_t stride, const real *values, int64_t count, int64_t D, float *out,
                      const int Q, const int B) {
    vec acc[QUERIES * 4], v[4];
    UNROLL
    for (int t = 0; t < Q; t++)
        UNROLL
        for (int b = 0; b < B; b++) acc[t * B + b] = *(vec *)(out + t * D + b * LANES);
    for (int64_t j = 0; j < count; j++) {
        UNROLL
        for (int b = 0; b < B; b++) v[b] = load(values + j * D + b * LANES);
        UNROLL
        for (int t = 0; t < Q; t++) {
            float weight = p[t * stride + j];
            UNROLL
            for (int b = 0; b < B; b++) acc[t * B + b] += weight * v[b];
        }
    }
    UNROLL
    for (int t = 0; t < Q; t++)
        UNROLL
        for (int b = 0; b < B; b++) *(vec *)(out + t * D + b * LANES) = acc[t * B + b];
}

INLINE void add_values(const float *p, int64_t stride, const real *values, int64_t count, int64_t D, float *out,
                       const int Q) {
    int64_t d = 0;
    for (; d + 4 * LANES <= D; d += 4 * LANES) add_block(p, stride, values + d, count, D, out + d, Q, 4);
    for (; d < D; d += LANES) add_block(p, stride, values + d, count, D, out + d, Q, 1);
}

/* A run of keys and values in memory, and where its scores stand. */
typedef struct { const real *k, *v; int64_t count; } run;

/* One to QUERIES queries of one key/value head over up to three runs; lengths[t] of all scores count for query t. */
INLINE void attend_few(const float *q, const run *runs, const int32_t *lengths, int64_t D, float *scores,
                       int64_t stride, float *out, const int Q) {
    int64_t at = 0;
    for (int r = 0; r < 3; r++) {
        dot_keys(q, runs[r].k, runs[r].v, runs[r].count, D, scores + at, stride, Q);
        at += runs[r].count;
    }
    float scale[QUERIES];
    for (int t = 0; t < Q; t++) {
        float *s = scores + t * stride, peak = s[0], total = 0;
        int64_t n = lengths[t];
        int64_t j = 0;
        if (n >= LANES) {
            vec high = *(const vec *)s;
            for (j = LANES; j + LANES <= n; j += LANES) high = larger(*(const vec *)(s + j), high);
            for (int i = 0; i < LANES; i++) peak = high[i] > peak ? high[i] : peak;
        }
        for (; j < n; j++) peak = s[j] > peak ? s[j] : peak;
        int64_t whole = (n + LANES - 1) / LANES * LANES; /* what fills up the last vector adds nothing to the sum */
        for (j = n; j < whole; j++) s[j] = -FLT_MAX;
#pragma omp simd reduction(+ : total)
        for (j = 0; j < whole; j++) {
            s[j] = exp_negative(s[j] - peak);
            total += s[j];
        }
        for (j = n; j < at; j++) s[j] = 0;
        scale[t] = 1.0f / total;
    }
    memset(out, 0, sizeof(float) * Q * D);
    at = 0;
    for (int r = 0; r < 3; r++) {
        add_values(scores + at, stride, runs[r].v, runs[r].count, D, out, Q);
        at += runs[r].count;
    }
    for (int t = 0; t < Q; t++)
        for (int64_t d = 0; d < D; d++) out[t * D + d] *= scale[t];
}

#define KEYS 8 /* at a time, where queries are lanes */
#define SIDE 8 /* queries whose sums of values are in registers */

#ifdef PAIRS
typedef pairs part; /* two coordinates of all queries */
#define PER_PART 2
#else
typedef vec part;
#define PER_PART 1
#endif

/* scores[j][t] = q[t] . keys[j]; q holds coordinate by coordinate. Up to KEYS - 1 rows behind the last are spoiled. */
static void dot_lanes(const part *q, const real *keys, const real *values, int64_t count, int64_t D, float *scores) {
    for (int64_t j = 0; j < count; j += KEYS) {
        const real *k[KEYS];
        UNROLL
        for (int i = 0; i < KEYS; i++) {
            int64_t row = (j + i < count ? j + i : count - 1) * D;
            k[i] = keys + row;
            for (int64_t d = 0; d < D; d += LINE) {
                __builtin_prefetch(k[i] + KEYS * D + d);
                __builtin_prefetch(values + row + d);
            }
        }
        vec acc[KEYS];
        UNROLL
        for (int i = 0; i < KEYS; i++) acc[i] = (vec){0};
        for (int64_t d = 0; d < D; d += PER_PART) {
            part all = q[d / PER_PART];
            UNROLL
            for (int i = 0; i < KEYS; i++)
#ifdef PAIRS
                acc[i] = (vec)_mm512_dpbf16_ps((__m512)acc[i], all, spread(k[i] + d));
#else
                acc[i] += all * up(k[i][d]);
#endif
        }
        UNROLL
        for (int i = 0; i < KEYS; i++) *(vec *)(scores + (j + i) * LANES) = acc[i];
    }
}

/* out[t] += sum of p[j][t] values[j] for SIDE queries, in blocks of `B` vectors of the head's width. */
INLINE void add_lanes(const float *p, const real *values, int64_t count, int64_t D, float *out, const int B) {
    vec acc[SIDE * 2], v[2];
    UNROLL
    for (int t = 0; t < SIDE; t++)
        UNROLL
        for (int b = 0; b < B; b++) acc[t * B + b] = *(vec *)(out + t * D + b * LANES);
    for (int64_t j = 0; j < count; j++) {
        UNROLL
        for (int b = 0; b < B; b++) v[b] = load(values + j * D + b * LANES);
        UNROLL
        for (int t = 0; t < SIDE; t++) {
            float weight = p[j * LANES + t];
            UNROLL
            for (int b = 0; b < B; b++) acc[t * B + b] += weight * v[b];
        }
    }
    UNROLL
    for (int t = 0; t < SIDE; t++)
        UNROLL
        for (int b = 0; b < B; b++) *(vec *)(out + t * D + b * LANES) = acc[t * B + b];
}

/* out += sum of p[j] values[j] for one query, in a block of `B` vectors; p's numbers are LANES apart. */
INLINE void add_alone(const float *p, const real *values, int64_t count, int64_t D, float *out, const int B) {
    vec acc[4];
    UNROLL
    for (int b = 0; b < B; b++) acc[b] = *(vec *)(out + b * LANES);
    for (int64_t j = 0; j < count; j++)
        UNROLL
        for (int b = 0; b < B; b++) acc[b] += p[j * LANES] * load(values + j * D + b * LANES);
    UNROLL
    for (int b = 0; b < B; b++) *(vec *)(out + b * LANES) = acc[b];
}

/* Scores [count][LANES] to weights in place: lane t counts its first lengths[t], at least `least`, and those behind
 * are 0. Returns 1 / sum. */
static vec weigh_lanes(float *scores, int64_t count, const int32_t *lengths, int64_t least, float scale) {
    vec peak = *(vec *)scores, total = {0};
    lanes most = *(const lanes *)lengths;
    for (int64_t j = 1; j < least; j++) peak = larger(*(vec *)(scores + j * LANES), peak);
    for (int64_t j = least; j < count; j++) {
        vec next = *(vec *)(scores + j * LANES);
        lanes more = (next > peak) & (most > (int32_t)j);
        peak = (vec)(((lanes)next & more) | ((lanes)peak & ~more));
    }
    for (int64_t j = 0; j < count; j++) {
        float *s = scores + j * LANES;
#pragma omp simd
        for (int t = 0; t < LANES; t++) s[t] = exp_negative((s[t] - peak[t]) * scale);
    }
    for (int64_t j = least; j < count; j++) {
        lanes seen = most > (int32_t)j;
        *(vec *)(scores + j * LANES) = (vec)((lanes)(*(vec *)(scores + j * LANES)) & seen);
    }
    for (int64_t j = 0; j < count; j++) total += *(vec *)(scores + j * LANES);
    return 1.0f / total;
}

/* QUERIES + 1 to LANES queries over up to three runs; queries[t] are theirs, those behind the last any of them. */
static void attend_lanes(const real *const *queries, const run *runs, const int32_t *lengths, int64_t D, float *scores,
                         part *q, float *out, int64_t few, float scale) {
#if defined(PAIRS) || defined(CHORUS_F32)
    for (int64_t d = 0; d < D; d += PER_PART * LANES) {
        const void *rows[LANES];
        for (int t = 0; t < LANES; t++) rows[t] = queries[t] + d;
        if (d + PER_PART * LANES <= D) transpose(rows, (uint32_t *)(q + d / PER_PART), LANES);
        else /* half a vector of pairs is left */
            for (int64_t at = d; at < D; at += PER_PART)
                for (int t = 0; t < LANES; t++)
                    memcpy((uint32_t *)(q + at / PER_PART) + t, queries[t] + at, sizeof(uint32_t));
    }
#else
    for (int64_t d = 0; d < D; d++)
        for (int t = 0; t < LANES; t++) ((float *)(q + d))[t] = up(queries[t][d]);
#endif
    int64_t at = 0;
    for (int r = 0; r < 3; r++) {
        dot_lanes(q, runs[r].k, runs[r].v, runs[r].count, D, scores + at * LANES);
        at += runs[r].count;
    }
    int64_t least = at; /* keys that all queries see */
    for (int64_t t = 0; t < few; t++) least = lengths[t] < least ? lengths[t] : least;
    vec share = weigh_lanes(scores, at, lengths, least, scale);
    memset(out, 0, sizeof(float) * LANES * D);
    for (int64_t t = 0; t < few; t += SIDE) {
        least = lengths[t]; /* keys that these queries see */
        for (int64_t i = t; i < few && i < t + SIDE; i++) least = lengths[i] < least ? lengths[i] : least;
        at = 0;
        for (int r = 0; r < 3; r++) {
            const float *p = scores + at * LANES + t;
            const real *v = runs[r].v;
            int64_t d = 0, count = runs[r].count, all = least - at < 0 ? 0 : least - at < count ? least - at : count;
            for (; d + 2 * LANES <= D; d += 2 * LANES) add_lanes(p, v + d, all, D, out + t * D + d, 2);
            for (; d < D; d += LANES) add_lanes(p, v + d, all, D, out + t * D + d, 1);
            if (all < count) /* a value that a query does not see must not touch it, not even as 0 x NaN */
                for (int64_t i = 0; i < SIDE && t + i < few; i++) {
                    int64_t end = lengths[t + i] - at < count ? lengths[t + i] - at : count;
                    const float *own = p + all * LANES + i;
                    const real *rest = v + all * D;
                    float *to = out + (t + i) * D;
                    for (d = 0; d + 4 * LANES <= D; d += 4 * LANES) add_alone(own, rest + d, end - all, D, to + d, 4);
                    for (; d < D; d += LANES) add_alone(own, rest + d, end - all, D, to + d, 1);
                }
            at += count;
        }
    }
    for (int64_t t = 0; t < few; t++)
        for (int64_t d = 0; d < D; d++) out[t * D + d] *= share[t];
}

/* What attention is told of a row. Its tokens are `first` to `first + count` of the batch. Places below `base` are read
 * from base_keys, base_values ([G, base_stride / D, D] each), all others from the row's slot. */
typedef struct {
    int64_t first, count, slot, base, base_stride;
    const char *base_keys, *base_values;
    int64_t layer_bytes; /* from one layer's base to the next */
} row_info;

/* out [n, H, D] = attention of the queries in qkv [n, (H + 2 G) D].
 * seen [n, 3] = `upto`, `from`, `to`: a token sees places 0 to upto, and from to `to` (its own branch; empty: 0, 0).
 * Places of one row's later tokens never decrease in `upto`. */
void attend(const real *qkv, real *out, const row_info *rows, int64_t count, const int64_t *seen, const real *keys,
            const real *values, int64_t layer, int64_t H, int64_t G, int64_t D, int64_t S, float scale) {
    int64_t repeat = H / G, tile = repeat >= 16 ? 1 : 16 / repeat; /* tokens of one piece of work */
    int64_t pieces = 0, longest = 0;
    int64_t *starts = malloc((count + 1) * sizeof(int64_t));
    for (int64_t r = 0; r < count; r++) {
        starts[r] = pieces;
        pieces += (rows[r].count + tile - 1) / tile * G;
        for (int64_t i = rows[r].first; i < rows[r].first + rows[r].count; i++) {
            int64_t sees = seen[3 * i] + seen[3 * i + 2] - seen[3 * i + 1];
            longest = sees > longest ? sees : longest;
        }
    }
    starts[count] = pieces;
    longest = (longest + 3 * LANES) / LANES * LANES;
#pragma omp parallel if (pieces > 1)
    {
        float *scores = room(sizeof(float) * LANES * (longest + 2 * D));
        float *q = scores + LANES * longest, *o = q + LANES * D;
        int64_t r = 0;
#pragma omp for schedule(dynamic, pieces > 64 ? 4 : 1)
        for (int64_t piece = 0; piece < pieces; piece++) {
            while (r > 0 && starts[r] > piece) r--;
            while (starts[r + 1] <= piece) r++;
            const row_info *row = rows + r;
            int64_t local = piece - starts[r], g = local % G, t0 = local / G * tile;
            int64_t tokens = row->count - t0 < tile ? row->count - t0 : tile, todo = tokens * repeat;
            const real *base_k = (const real *)(row->base_keys + layer * row->layer_bytes) + g * row->base_stride;
            const real *base_v = (const real *)(row->base_values + layer * row->layer_bytes) + g * row->base_stride;
            const real *slot_k = keys + (row->slot * G + g) * S * D, *slot_v = values + (row->slot * G + g) * S * D;
            if (row->count == 1 && piece + 1 < pieces) { /* the next piece's first keys and values set out meanwhile */
                const row_info *then = g + 1 < G ? row : row + 1;
                int64_t head = g + 1 < G ? g + 1 : 0, at = ((then->slot * G + head) * S + then->base) * D;
                const real *next_k = keys + at, *next_v = values + at;
                if (then->base > 0) {
                    next_k = (const real *)(then->base_keys + layer * then->layer_bytes) + head * then->base_stride;
                    next_v = (const real *)(then->base_values + layer * then->layer_bytes) + head * then->base_stride;
                }
                for (int64_t d = 0; d < AHEAD * LINE; d += LINE) {
                    FETCH(next_k + d);
                    FETCH(next_v + d);
                }
            }
            for (int64_t done = 0; done < todo;) {
                int64_t token = row->first + t0 + done / repeat;
                const int64_t *own = seen + 3 * token;
                int branch = own[2] > own[1];
                /* queries side by side: consecutive (token, head) pairs; a branch's token goes with its heads alone */
                int64_t few = todo - done < LANES ? todo - done : LANES;
                if (branch && few > repeat - done % repeat) few = repeat - done % repeat;
                const real *queries[LANES];
                int32_t lengths[LANES] __attribute__((aligned(64)));
                int64_t upto = own[0];
                for (int64_t t = 0; t < few; t++) {
                    int64_t i = row->first + t0 + (done + t) / repeat;
                    if (!branch && seen[3 * i + 2] > seen[3 * i + 1]) { few = t; break; }
                    upto = seen[3 * i];
                    lengths[t] = (int32_t)(seen[3 * i] + seen[3 * i + 2] - seen[3 * i + 1]);
                    queries[t] = qkv + i * (H + 2 * G) * D + (g * repeat + (done + t) % repeat) * D;
                }
                if (few > 1 && few <= QUERIES && few != QUERIES) few = 2;
                if (few <= QUERIES) upto = seen[3 * (row->first + t0 + (done + few - 1) / repeat)];
                int64_t base = row->base < upto ? row->base : upto;
                run runs[3] = {{base_k, base_v, base},
                               {slot_k + base * D, slot_v + base * D, upto - base},
                               {slot_k + own[1] * D, slot_v + own[1] * D, branch ? own[2] - own[1] : 0}};
                if (few <= QUERIES) {
                    for (int64_t t = 0; t < few; t++)
                        for (int64_t d = 0; d < D; d++) q[t * D + d] = up(queries[t][d]) * scale;
                    if (few == QUERIES) attend_few(q, runs, lengths, D, scores, longest, o, QUERIES);
                    else if (few == 2) attend_few(q, runs, lengths, D, scores, longest, o, 2);
                    else attend_few(q, runs, lengths, D, scores, longest, o, 1);
                } else {
                    for (int64_t t = few; t < LANES; t++) queries[t] = queries[0], lengths[t] = lengths[0];
                    attend_lanes(queries, runs, lengths, D, scores, (part *)q, o, few, scale);
                }
                for (int64_t t = 0; t < few; t++) {
                    int64_t i = row->first + t0 + (done + t) / repeat;
                    real *to = out + (i * H + g * repeat + (done + t) % repeat) * D;
                    for (int64_t d = 0; d < D; d++) to[d] = down(o[t * D + d]);
                }
                done += few;
            }
        }
        free(scores);
    }
    free(starts);
}
