// One vector of floats, as wide as the machine's registers, and the elementary functions on it.
//
// GCC's vector extensions (clang has them too) give operators on whole vectors, so the same text becomes AVX-512, AVX2, SSE
// or NEON code. Intrinsics appear only where the compiler would not find the instruction by itself.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// LANES floats a vector; a micro-kernel holds ROWS x VECTORS accumulators, and those with a row of B must fit the registers:
// 6 x 4 + 4 of 32 (AVX-512), 6 x 2 + 2 of 16 (AVX2, SSE). NEON has 32 registers and would take more; it has not been measured.
#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, VECTORS = 2;
#else
constexpr int LANES = 4, VECTORS = 2;
#endif
constexpr int ROWS = 6;

typedef float vfloat __attribute__((vector_size(LANES * 4)));
typedef int32_t vint __attribute__((vector_size(LANES * 4)));

static inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

static inline vfloat load(const float* p) {
  vfloat v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, vfloat v) { memcpy(p, &v, sizeof v); }
static inline vfloat splat(float x) { return x - vfloat{}; }
static inline vint splat(int32_t x) { return x - vint{}; }

// Holds v in its register: a vector with several uses GCC may read from memory again for each, and loads are then the limit.
static inline void hold(vfloat& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#else
  (void)v;
#endif
}

// Lane by lane `mask ? a : b`. A comparison with NaN is false, so a NaN always takes b: the clamps below rely on it.
static inline vfloat select(vint mask, vfloat a, vfloat b) { return (vfloat)(((vint)a & mask) | ((vint)b & ~mask)); }

static inline float sum(vfloat v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0;
  for (int i = 0; i < LANES; i++) s += v[i];
  return s;
#endif
}

// The vector with the lanes from `count` on set to zero: the tail of a row whose width is no multiple of LANES.
static inline vfloat first_lanes(vfloat v, int count) {
  vint lane;
  for (int i = 0; i < LANES; i++) lane[i] = i;
  return select(lane < count, v, vfloat{});
}

// e^x = 2^n (1 + r + r^2 q(r)), n the whole number nearest x / ln 2 and |r| <= ln 2 / 2. Both functions below keep the
// remainder r + r^2 q(r) apart from the 1, so that e^x - 1 loses nothing near zero. Errors are below 2 units in the last
// place; x is held within +-87, where 2^n is a normal number; NaN stays NaN.
struct Exponent {
  vfloat power, rest;  // 2^n and r + r^2 q(r)
};
static inline Exponent split_exp(vfloat x) {
  x = select(x < splat(-87.f), splat(-87.f), x);
  x = select(x > splat(87.f), splat(87.f), x);
  const vfloat to_whole = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits
  vfloat shifted = x * splat(1.44269504f) + to_whole, n = shifted - to_whole;
  vfloat r = x - n * splat(0.693359375f);  // ln 2 in two parts: the first has few bits, so the product is exact
  r = r - n * splat(-2.12194440e-4f);
  vfloat q = splat(1.f / 5040);  // Taylor's terms: at |r| < 0.347 the first one left out is below 2^-27 of the result
  for (float term : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2}) q = q * r + splat(term);
  vint exponent = ((vint)shifted - (vint)to_whole + 127) << 23;
  return {(vfloat)exponent, r + r * r * q};
}
static inline vfloat exp(vfloat x) {
  Exponent e = split_exp(x);
  return e.power + e.power * e.rest;
}
static inline vfloat expm1(vfloat x) {
  Exponent e = split_exp(x);
  return e.power * e.rest + (e.power - splat(1.f));
}
static inline vfloat tanh(vfloat x) {  // -m/(m + 2) with m = e^(-2|x|) - 1, and the sign of x
  vint sign = (vint)x & splat(INT32_MIN);
  vfloat size = (vfloat)((vint)x & splat(INT32_MAX));
  vfloat m = expm1(splat(-2.f) * size);
  return (vfloat)((vint)(-m / (m + splat(2.f))) | sign);
}
static inline vfloat erf(vfloat x) {  // lane by lane: only GELU needs it, and none of the usual planners' networks has GELU
  for (int i = 0; i < LANES; i++) x[i] = std::erf(x[i]);
  return x;
}
