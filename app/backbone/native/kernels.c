/* The four steps between the matrix products of a Llama-shaped decoder, for CPUs: exact lengths, no masks, no copies.
 *
 * Compiled on first use by build.py, once for float32 (-DCHORUS_F32) and once for bfloat16; the same functions in plain
 * torch are in ../decoder_steps.py and the tests hold these to those. Sums are in float32 whatever the storage type.
 *
 * Names: n tokens of the batch lie one behind the other; a row is a run of them. H query heads, G key/value heads,
 * D head width. Keys and values of a row: `base` places elsewhere (a prompt's, shared by all its rows), the rest in the
 * row's slot.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef CHORUS_F32
typedef float real;
#else
typedef uint16_t real;
#endif

#define LANES 16
#define LINE (64 / (int64_t)sizeof(real))
typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
typedef int32_t lanes __attribute__((vector_size(64)));

#ifdef CHORUS_F32
static inline float up(real x) { return x; }
static inline real down(float x) { return x; }
static inline vec load(const real *p) { return *(const vec *)p; }
#else
static inline float up(real x) {
    union { uint32_t u; float f; } v = {(uint32_t)x << 16};
    return v.f;
}
static inline real down(float x) { /* round to nearest even; NaN stays NaN */
    union { float f; uint32_t u; } v = {x};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (real)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}
static inline vec load(const real *p) {
    return (vec)(__builtin_convertvector(*(const halves *)p, words) << 16);
}
#endif

/* e^x for x <= 0: Cody-Waite reduction and a polynomial of degree 6; relative error below 2e-7; NaN stays NaN. */
static inline float exp_negative(float x) {
    x = x < -87.0f ? -87.0f : x;
    float n = __builtin_floorf(x * 1.44269504088896341f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } scale = {((int32_t)n + 127) << 23};
    return p * scale.f;
}

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
 * qkv [n, (H + 2 G) D]; cos, sin [positions, turned / 2]; places [n, 3] = position, slot, place in the slot;
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

#define UNROLL _Pragma("GCC unroll 16") /* keeps the sums in registers */
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

/* scores[t][j] = q[t] . keys[j] for `count` keys, while their values are on their way; q [QUERIES, D] float32; scores' rows are `stride` apart. */
static inline __attribute__((always_inline)) void dot_keys(const float *q, const real *keys, const real *values,
                                                           int64_t count, int64_t D, float *scores, int64_t stride,
                                                           const int Q) {
    const int K = LANES / Q; /* keys at a time */
    int64_t j = 0;
    for (; j + K <= count; j += K) {
        if (Q == 1) /* one query waits for memory, several for arithmetic */
            UNROLL
            for (int i = 0; i < K; i++)
                for (int64_t d = 0; d < D; d += LINE) {
                    __builtin_prefetch(keys + (j + K + i) * D + d);
                    __builtin_prefetch(values + (j + i) * D + d);
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
static inline __attribute__((always_inline)) void add_block(const float *p, int64_t stride, const real *values,
                                                            int64_t count, int64_t D, float *out, const int Q,
                                                            const int B) {
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

static inline __attribute__((always_inline)) void add_values(const float *p, int64_t stride, const real *values,
                                                             int64_t count, int64_t D, float *out, const int Q) {
    int64_t d = 0;
    for (; d + 4 * LANES <= D; d += 4 * LANES) add_block(p, stride, values + d, count, D, out + d, Q, 4);
    for (; d < D; d += LANES) add_block(p, stride, values + d, count, D, out + d, Q, 1);
}

/* A run of keys and values in memory, and where its scores stand. */
typedef struct { const real *k, *v; int64_t count; } run;

/* One to QUERIES queries of one key/value head over up to three runs; lengths[t] of all scores count for query t. */
static inline __attribute__((always_inline)) void attend_few(const float *q, const run *runs, const int64_t *lengths,
                                                             int64_t D, float *scores, int64_t stride, float *out,
                                                             const int Q) {
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
            for (j = LANES; j + LANES <= n; j += LANES) {
                vec next = *(const vec *)(s + j);
                lanes more = next > high;
                high = (vec)(((lanes)next & more) | ((lanes)high & ~more));
            }
            for (int i = 0; i < LANES; i++) peak = high[i] > peak ? high[i] : peak;
        }
        for (; j < n; j++) peak = s[j] > peak ? s[j] : peak;
#pragma omp simd reduction(+ : total)
        for (j = 0; j < n; j++) {
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
    longest += 2 * LANES;
#pragma omp parallel if (pieces > 1)
    {
        float *scores = malloc(sizeof(float) * (QUERIES * longest + 2 * QUERIES * D + 64));
        float *q = scores + QUERIES * longest, *o = q + QUERIES * D;
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
            for (int64_t done = 0; done < todo;) {
                int64_t token = row->first + t0 + done / repeat;
                const int64_t *own = seen + 3 * token;
                int branch = own[2] > own[1];
                /* queries side by side: consecutive (token, head) pairs; a branch's token goes with its heads alone */
                int64_t few = todo - done < QUERIES ? todo - done : QUERIES;
                if (branch && few > repeat - done % repeat) few = repeat - done % repeat;
                int64_t lengths[QUERIES], upto = own[0];
                for (int64_t t = 0; t < few; t++) {
                    int64_t i = row->first + t0 + (done + t) / repeat;
                    if (!branch && seen[3 * i + 2] > seen[3 * i + 1]) { few = t; break; }
                    upto = seen[3 * i];
                    lengths[t] = seen[3 * i] + seen[3 * i + 2] - seen[3 * i + 1];
                    const real *from = qkv + i * (H + 2 * G) * D + (g * repeat + (done + t) % repeat) * D;
                    for (int64_t d = 0; d < D; d++) q[t * D + d] = up(from[d]) * scale;
                }
                int64_t base = row->base < upto ? row->base : upto;
                run runs[3] = {{base_k, base_v, base},
                               {slot_k + base * D, slot_v + base * D, upto - base},
                               {slot_k + own[1] * D, slot_v + own[1] * D, branch ? own[2] - own[1] : 0}};
                if (few == 4) attend_few(q, runs, lengths, D, scores, longest, o, 4);
                else if (few >= 2) { few = 2; attend_few(q, runs, lengths, D, scores, longest, o, 2); }
                else attend_few(q, runs, lengths, D, scores, longest, o, 1);
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
