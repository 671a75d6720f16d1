/* Storage types, vectors of 16 numbers, and what all kernels compute with them. */
#ifndef CHORUS_NUMBERS
#define CHORUS_NUMBERS

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

#define UNROLL _Pragma("GCC unroll 16") /* keeps the sums in registers */
#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if !defined(CHORUS_F32) && defined(__AVX512BF16__)
#define PAIRS /* the processor multiplies and adds pairs of bfloat16 numbers, with sums in float32 */
typedef __m512bh pairs;
/* The pair at `p`, 16 times. */
INLINE pairs spread(const real *p) {
    int32_t both;
    memcpy(&both, p, sizeof both);
    return (pairs)_mm512_set1_epi32(both);
}
#endif

/* The larger of both, lane by lane; the second where either is NaN. */
INLINE vec larger(vec a, vec b) {
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    lanes more = a > b;
    return (vec)(((lanes)a & more) | ((lanes)b & ~more));
#endif
}

/* to[i][r] = rows[r][i] for 16 rows of 16 words of 32 bits; rows of `to` are `stride` words apart. */
INLINE void transpose(const void *const rows[LANES], uint32_t *to, int64_t stride) {
#ifdef __AVX512F__
    __m512i a[LANES], b[LANES];
    UNROLL
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(rows[i]);
    UNROLL
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 16; i += 4) { /* a[i + j]: rows i to i + 3 of words j, j + 4, j + 8, j + 12 */
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    UNROLL
    for (int j = 0; j < 4; j++) {
        __m512i p = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x44), q = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x44);
        __m512i r = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xee), s = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xee);
        _mm512_storeu_si512(to + j * stride, _mm512_shuffle_i32x4(p, q, 0x88));
        _mm512_storeu_si512(to + (4 + j) * stride, _mm512_shuffle_i32x4(p, q, 0xdd));
        _mm512_storeu_si512(to + (8 + j) * stride, _mm512_shuffle_i32x4(r, s, 0x88));
        _mm512_storeu_si512(to + (12 + j) * stride, _mm512_shuffle_i32x4(r, s, 0xdd));
    }
#else
    for (int i = 0; i < 16; i++)
        for (int r = 0; r < 16; r++) memcpy(to + i * stride + r, (const uint32_t *)rows[r] + i, sizeof *to);
#endif
}

/* The memory a kernel works in, at the beginning of a cache line. */
static inline void *room(int64_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

#endif
