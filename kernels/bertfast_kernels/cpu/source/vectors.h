// Vectors of 16 floats, in the compiler's own vector types: one register with AVX-512, two with AVX2, four with NEON.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ivec __attribute__((vector_size(64)));
typedef uint32_t uvec __attribute__((vector_size(64)));
typedef uint16_t hvec __attribute__((vector_size(32)));
typedef uint8_t bvec __attribute__((vector_size(16)));

struct bf16 {
    uint16_t bits;
};

static const int LANES = 16;

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long rounded_up(long n) { return (n + LANES - 1) / LANES * LANES; }

static inline vec to_float(hvec h) {
    uvec bits = __builtin_convertvector(h, uvec) << 16;
    return (vec)bits;
}

// To the nearest, ties to even; a NaN stays one.
static inline hvec to_half(vec x) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
    return (hvec)_mm512_cvtneps_pbh((__m512)x);
#else
    uvec bits = (uvec)x;
    uvec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(x == x ? rounded : (uvec){} + 0x7fc0, hvec);
#endif
}

static inline vec load(const float* from) {
    vec x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline vec load(const bf16* from) {
    hvec h;
    memcpy(&h, from, sizeof h);
    return to_float(h);
}
static inline void store(float* to, vec x) { memcpy(to, &x, sizeof x); }
static inline void store(bf16* to, vec x) {
    hvec h = to_half(x);
    memcpy(to, &h, sizeof h);
}

// The first n of 16 elements; the others read as zeros and are not written.
static inline vec load(const float* from, long n) {
    if (n >= LANES) return load(from);
    vec x = {};
    memcpy(&x, from, n * sizeof(float));
    return x;
}
static inline vec load(const bf16* from, long n) {
    if (n >= LANES) return load(from);
    hvec h = {};
    memcpy(&h, from, n * sizeof(bf16));
    return to_float(h);
}
static inline void store(float* to, vec x, long n) {
    if (n >= LANES) return store(to, x);
    memcpy(to, &x, n * sizeof(float));
}
static inline void store(bf16* to, vec x, long n) {
    if (n >= LANES) return store(to, x);
    hvec h = to_half(x);
    memcpy(to, &h, n * sizeof(bf16));
}

// 1 where a byte is 1, 0 where it is 0.
static inline vec load_mask(const uint8_t* from, long n) {
    bvec b = {};
    memcpy(&b, from, n >= LANES ? LANES : n);
    return __builtin_convertvector(__builtin_convertvector(b, ivec), vec);
}

// What the dtype of the activations keeps of x.
static inline vec as_stored(vec x, const float*) { return x; }
static inline vec as_stored(vec x, const bf16*) { return to_float(to_half(x)); }

static inline float sum_of(vec x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}
static inline vec larger(vec a, vec b) { return a > b ? a : b; }  // of a NaN in a: b
static inline float largest_of(vec x) {
    float top = x[0];
    for (int i = 1; i < LANES; i++) top = x[i] > top ? x[i] : top;
    return top;
}

// e^x for x <= 88, within 2 units in the last place; 0 below -87.3. Cody and Waite's reduction, then Taylor's series on |r| <= ln(2) / 2.
static inline vec exp_of(vec x) {
    vec bounded = x < -87.3f ? (vec){} - 87.3f : x;
    bounded = bounded > 88.0f ? (vec){} + 88.0f : bounded;
    vec shifted = bounded * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: its last bits are the nearest whole number
    ivec power = (ivec)shifted - 0x4b400000;
    vec whole = shifted - 12582912.0f;
    vec r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
    vec series = r * 1.9841270e-4f + 1.3888889e-3f;
    series = series * r + 8.3333333e-3f;
    series = series * r + 4.1666667e-2f;
    series = series * r + 1.6666667e-1f;
    series = series * r + 0.5f;
    vec e = series * r * r + r + 1.0f;
    e = (vec)((ivec)e + (power << 23));
    e = x < -87.3f ? (vec){} : e;
    return x == x ? e : x;
}

// Working memory of one thread, at least so many floats, aligned to 64 bytes; it is kept for the thread's next call.
static inline float* scratch(size_t floats) {
    struct Held {
        float* at = nullptr;
        size_t floats = 0;
        ~Held() { free(at); }
    };
    static thread_local Held held;
    if (held.floats < floats) {
        free(held.at);
        held.at = static_cast<float*>(aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
        held.floats = floats;
    }
    return held.at;
}

// A call with the activations' dtype as T.
#define OF_DTYPE(half, ...) \
    if (half) {             \
        typedef bf16 T;     \
        __VA_ARGS__;        \
    } else {                \
        typedef float T;    \
        __VA_ARGS__;        \
    }
