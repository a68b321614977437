// Counted random numbers, as `draws_ref.py` defines them: words and uniforms bit for bit, normals to rounding.
#pragma once

#include "simd.h"

// Four words of 32 bits for each of LANES neighbouring blocks of a candidate's numbers.
struct Words {
  alignas(64) uint32_t of[4][LANES];
};

// Philox-4x32-10 of the counters (block + i, sample, key).
static inline Words philox(uint64_t seed, uint32_t block, uint32_t sample, uint64_t key) {
  Words c;
  for (int i = 0; i < LANES; i++) c.of[0][i] = block + i, c.of[1][i] = sample;
  for (int i = 0; i < LANES; i++) c.of[2][i] = (uint32_t)key, c.of[3][i] = (uint32_t)(key >> 32);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < LANES; i++) {
      const uint64_t a = (uint64_t)c.of[0][i] * 0xD2511F53u, b = (uint64_t)c.of[2][i] * 0xCD9E8D57u;
      c.of[0][i] = (uint32_t)(b >> 32) ^ c.of[1][i] ^ k0, c.of[2][i] = (uint32_t)(a >> 32) ^ c.of[3][i] ^ k1;
      c.of[1][i] = (uint32_t)b, c.of[3][i] = (uint32_t)a;
    }
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}

// Of words, in [0, 1): as signed numbers, whose sign is folded away.
static inline vfloat uniform(const uint32_t* words) {
  vint w;
  memcpy(&w, words, sizeof w);
  return __builtin_convertvector(w ^ (w >> 31), vfloat) * splat(4.6566127342e-10f);
}

// log x of normal numbers above zero: x = 2^n m with m in [sqrt(1/2), sqrt 2), and log m = 2 artanh((m - 1)/(m + 1)).
static inline vfloat log(vfloat x) {
  const vint n = ((vint)x - 0x3f3504f3) >> 23, m = (vint)x - (n << 23);
  const vfloat f = (vfloat)m - splat(1.f), s = f / (f + splat(2.f)), y = s * s;
  vfloat q = splat(2.f / 9);
  for (float term : {2.f / 7, 2.f / 5, 2.f / 3}) q = q * y + splat(term);
  const vfloat whole = __builtin_convertvector(n, vfloat), rest = s * (splat(2.f) + y * q);
  return whole * splat(0.693359375f) + (whole * splat(-2.12194440e-4f) + rest);
}

// cos(2 pi turn) and sin for turns in [0, 1]: an eighth of a turn around the nearest quarter is left, exactly.
static inline void of_turns(vfloat turn, vfloat& cosine, vfloat& sine) {
  const vint quarter = __builtin_convertvector(splat(4.f) * turn + splat(0.5f), vint);
  const vfloat x = (turn - splat(0.25f) * __builtin_convertvector(quarter, vfloat)) * splat(6.283185307f), y = x * x;
  vfloat s = splat(1.f / 362880), c = splat(-1.f / 3628800);
  for (float term : {-1.f / 5040, 1.f / 120, -1.f / 6}) s = s * y + splat(term);
  for (float term : {1.f / 40320, -1.f / 720, 1.f / 24, -1.f / 2}) c = c * y + splat(term);
  s = x + x * y * s, c = splat(1.f) + y * c;
  const vint odd = -(quarter & 1), sign_c = ((quarter + 1) & 2) << 30, sign_s = (quarter & 2) << 30;
  cosine = (vfloat)((vint)select(odd, s, c) ^ sign_c), sine = (vfloat)((vint)select(odd, c, s) ^ sign_s);
}

// Standard normals 4 LANES block .. of a candidate: a pair of words makes two, by Box and Muller. Writes 4 LANES numbers.
static inline void normals(uint64_t seed, uint32_t block, uint32_t sample, uint64_t key, float* to) {
  const Words words = philox(seed, block, sample, key);
  alignas(64) float made[4][LANES];
  for (int pair = 0; pair < 4; pair += 2) {
    vfloat u = uniform(words.of[pair]), cosine, sine;
    u = splat(-2.f) * log(select(u < splat(1e-7f), splat(1e-7f), u));
    alignas(64) float size[LANES];
    store(size, u);
    for (int i = 0; i < LANES; i++) size[i] = std::sqrt(size[i]);
    of_turns(uniform(words.of[pair + 1]), cosine, sine);
    store(made[pair], load(size) * cosine), store(made[pair + 1], load(size) * sine);
  }
  for (int i = 0; i < LANES; i++)
    for (int q = 0; q < 4; q++) to[4 * i + q] = made[q][i];
}
