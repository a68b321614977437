// Products of a few rows with a big constant matrix, C[M, N] = A[M, K] B[K, N].
//
// Packing. B is cut into panels of `width` columns, and a panel lies in memory in the order in which it is read:
//
//            panel 0      panel 1                  one panel, row after row of B
//          +-----------+-----------+--             +-----------------------+
//     B    | k=0 ..... | k=0 ..... |               | k=0: width columns    |  <- V vectors, loaded once and used
//   [K, N] | k=1 ..... | k=1 ..... |       ->      | k=1: width columns    |     for M rows of A
//          | :         | :         |               | :                     |
//          +-----------+-----------+--             +-----------------------+
//
// In bfloat16 two neighbouring k share a 32-bit word, as the dot-product instructions want it; K is padded to 32 with zeros.
// N is padded to whole panels with zeros, so columns behind N come out as zero.
//
// Micro-kernel. M x V vectors of C stay in registers (M up to ROWS, V = width / LANES) while k runs: V loads of B, M
// broadcasts of A, M V multiply-adds. A long K is cut into slices that stay in the first-level cache for all M blocks.
// Each entry of C is the sum of its slices, and a slice one chain of multiply-adds in the order of k, whatever M is, so a
// row's result does not depend on the rows beside it. (A lone row is the exception: it has too few chains to fill the
// pipeline and sums even and odd k apart.) Short chains also round less than one over all of K.
//
// Whole numbers. A few rows take the time that reading B takes. So a big B may come as whole numbers of 24 bits and a scale
// for each column, three bytes instead of four: to round it so costs less than float sums lose (pack.py holds it to that).
//
// Six products. A float is the sum of three bfloat16 numbers (8 + 8 + 8 bits), x = x0 + x1 + x2. On matrix tiles (AMX) a
// bfloat16 product is so cheap that x0 y0 + x0 y1 + x1 y0 + x1 y1 + x0 y2 + x2 y0 beats one float product; the three left out
// are below 2^-24 of the result, as is the rounding of a float product. Sums are in float throughout.
#pragma once

#include <algorithm>
#include <cstddef>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "simd.h"

enum class Products : int32_t { fp32, bf16, bf16x6 };

// A packed matrix: `columns` is N padded to whole panels of `width`. `scale`: of each column of whole numbers, else null.
struct Panels {
  const void* data;
  const float* scale;
  int32_t columns, width;
};

// Rows that a product reads: floats, or bfloat16 in one plane or three, `plane` elements apart. All strides in elements.
struct Operand {
  const float* rows;
  const uint16_t* halves;
  long stride, plane;
};

constexpr int planes(Products p) { return p == Products::fp32 ? 0 : p == Products::bf16 ? 1 : 3; }

// A slice of a panel that is to stay in the first-level cache (32 to 48 KB) while the blocks of rows pass: 128 rows of 64
// floats are 32 KB, 256 of 16 (AVX2) 16 KB, which was 3% faster than 128. The tiles read B once for 32 rows, so there the second level feeds them, and whole columns up to 1024
// were as fast or faster than shorter slices at every width measured (256, 1024).
constexpr int SLICE = LANES == 16 ? 128 : 256, TILE_SLICE = 1024;

// What a panel holds for a column: a float or a whole number for each k, or a pair of bfloat16 for two k.
enum class Word { fp32, int24, bf16_pair };
constexpr int bytes(Word w) { return w == Word::int24 ? 3 : 4; }
#if defined(__AVX512VBMI__)
constexpr bool INTEGERS = true;
#else
constexpr bool INTEGERS = false;
#endif

// A vector of B, as floats where it is whole numbers: these are put into the high three bytes of 32 bits, and so times 256.
template <Word W> static inline vfloat load_words(const char* from) {
#if defined(__AVX512VBMI__)
  if constexpr (W == Word::int24) {
    const __m512i spread = _mm512_set_epi32(
        0x2f2e2d00, 0x2c2b2a00, 0x29282700, 0x26252400, 0x23222100, 0x201f1e00, 0x1d1c1b00, 0x1a191800,  //
        0x17161500, 0x14131200, 0x11100f00, 0x0e0d0c00, 0x0b0a0900, 0x08070600, 0x05040300, 0x02010000);
    const __mmask64 high = 0xeeeeeeeeeeeeeeee;  // the low byte is zero
    return (vfloat)_mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(high, spread, _mm512_loadu_si512(from)));
  }
#endif
  return load((const float*)from);
}

// acc + a b; in bfloat16 the two products of a pair of k.
template <Word W> static inline vfloat multiply_add(vfloat acc, vfloat a, vfloat b) {
  if constexpr (W != Word::bf16_pair) return acc + a * b;
#if defined(__AVX512BF16__)
  return (vfloat)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  const vint high = splat((int32_t)0xffff0000);  // a bfloat16 is the high half of a float
  acc += (vfloat)((vint)a << 16) * (vfloat)((vint)b << 16);
  return acc + (vfloat)((vint)a & high) * (vfloat)((vint)b & high);
#endif
}

// A slice of V of the PANEL vectors of a panel. Meanwhile ASKS lines a k are asked for, from `ahead` on, `step` bytes a k.
template <Word W, int M, int V, int PANEL = V, int ASKS = (M > 1)>
static void micro_kernel(const float* A, long lda, const char* B, int K, float* C, long ldc, const char* ahead, long step,
                         bool add, const float* scale) {
  constexpr int VECTOR = LANES * bytes(W);
  constexpr int CHAINS = M == 1 ? 2 : 1;
  vfloat acc[CHAINS][M][V] = {};
  int k = 0;
  for (; k + CHAINS <= K; k += CHAINS) {
#pragma GCC unroll 2
    for (int c = 0; c < CHAINS; c++) {
      vfloat b[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) {
        b[j] = load_words<W>(B + ((long)(k + c) * PANEL + j) * VECTOR);
        if (M > 1) hold(b[j]);
      }
      for (int q = 0; q < ASKS; q++) __builtin_prefetch(ahead + k * step + q * 64, 0, 2);
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) {
        vfloat a = splat(A[i * lda + k + c]);
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) acc[c][i][j] = multiply_add<W>(acc[c][i][j], a, b[j]);
      }
    }
  }
  if constexpr (CHAINS == 2) {
    if (k < K)
      for (int j = 0; j < V; j++)
        acc[0][0][j] = multiply_add<W>(acc[0][0][j], splat(A[k]), load_words<W>(B + ((long)k * PANEL + j) * VECTOR));
    for (int j = 0; j < V; j++) acc[0][0][j] += acc[1][0][j];
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < V; j++) {
      vfloat sum = W == Word::int24 ? acc[0][i][j] * load(scale + j * LANES) : acc[0][i][j];
      float* c = C + i * ldc + j * LANES;
      store(c, add ? load(c) + sum : sum);
    }
}

// A block of seven or eight rows (all steps of one plan): half of the panel, then the other. Two blocks of four rows would
// decode all twice, and ask for fewer lines than the next slice has: at width 1024 they took a quarter longer.
template <Word W, int M>
static void in_halves(const float* A, long lda, const char* B, int K, float* C, long ldc, const char* ahead, bool add,
                      const float* scale) {
  constexpr int HALF = 2 * LANES, LINES = HALF * 2 * bytes(W) / 64, FIRST = (LINES + 1) / 2;
  micro_kernel<W, M, 2, 4, FIRST>(A, lda, B, K, C, ldc, ahead, FIRST * 64, add, scale);
  B += HALF * bytes(W), ahead += (long)K * FIRST * 64, scale = W == Word::int24 ? scale + HALF : nullptr;
  micro_kernel<W, M, 2, 4, LINES - FIRST>(A, lda, B, K, C + HALF, ldc, ahead, (LINES - FIRST) * 64, add, scale);
}

// One panel: blocks of up to ROWS rows, as even as can be, for each slice of K. While a slice is used the next is asked for,
// evenly: the blocks that asked for all of it would wait for their own operands, as a core can wait for some twenty lines.
template <Word W, int V>
static void panel_product(const float* A, long lda, int M, const char* B, int K, float* C, long ldc, const float* scale) {
  constexpr int ROW = V * LANES * bytes(W);
  const bool halves = V == 4 && (M == 7 || M == 8);
  const int blocks = halves ? 1 : (M + ROWS - 1) / ROWS, base = M / blocks, extra = M % blocks;
  const long step = std::min(64, ROW / blocks);
  for (int k0 = 0; k0 < K; k0 += SLICE) {
    const int kn = std::min(SLICE, K - k0);
    const bool add = k0 > 0;
    const char *b = B + (long)k0 * ROW, *next = b + (long)kn * ROW;
    for (int q = 0, r = 0; q < blocks; q++) {
      const int m = base + (q < extra);
      const float* a = A + r * lda + k0;
      float* c = C + r * ldc;
      const char* ahead = next + q * kn * step;
      switch (m) {
        case 1: micro_kernel<W, 1, V>(a, lda, b, kn, c, ldc, ahead, step, add, scale); break;
        case 2: micro_kernel<W, 2, V>(a, lda, b, kn, c, ldc, ahead, step, add, scale); break;
        case 3: micro_kernel<W, 3, V>(a, lda, b, kn, c, ldc, ahead, step, add, scale); break;
        case 4: micro_kernel<W, 4, V>(a, lda, b, kn, c, ldc, ahead, step, add, scale); break;
        case 5: micro_kernel<W, 5, V>(a, lda, b, kn, c, ldc, ahead, step, add, scale); break;
        case 6: micro_kernel<W, 6, V>(a, lda, b, kn, c, ldc, ahead, step, add, scale); break;
        case 7: if constexpr (V == 4) in_halves<W, 7>(a, lda, b, kn, c, ldc, ahead, add, scale); break;
        case 8: if constexpr (V == 4) in_halves<W, 8>(a, lda, b, kn, c, ldc, ahead, add, scale); break;
      }
      r += m;
    }
  }
}

#include "tiles.h"

// Writes the panels of C that fall to thread `id` of `threads`; the rows of C are `ldc` floats apart.
template <Products P>
static void product(const Operand& A, int M, const Panels& B, int K, float* C, long ldc, int id, int threads) {
  constexpr bool HALF = P != Products::fp32;
  const int words = HALF ? round_up(K, 32) / 2 : K;  // 32-bit words a column
  const int count = B.columns / B.width, first = count * id / threads, last = count * (id + 1) / threads;
  const long panel = (long)B.width * words, plane = panel * count;
  for (int p = first; p < last; p++) {
    float* c = C + (long)p * B.width;
    if (B.scale) {  // packed so only in full panels
      const char* b = (const char*)B.data + p * panel * bytes(Word::int24);
      panel_product<Word::int24, VECTORS>(A.rows, A.stride, M, b, K, c, ldc, B.scale + (long)p * B.width);
      continue;
    }
    const float* b = (const float*)B.data + p * panel;
    if (HALF && tile_product<P>(A, M, b, B.width, plane, words, c, ldc)) continue;
    const float* a = HALF ? (const float*)A.halves : A.rows;
    const long lda = HALF ? A.stride / 2 : A.stride;
    constexpr Word W = HALF ? Word::bf16_pair : Word::fp32;
    switch (B.width / LANES) {
      case 1: panel_product<W, 1>(a, lda, M, (const char*)b, words, c, ldc, nullptr); break;
      case 2: panel_product<W, 2>(a, lda, M, (const char*)b, words, c, ldc, nullptr); break;
      default: panel_product<W, 4>(a, lda, M, (const char*)b, words, c, ldc, nullptr); break;
    }
  }
}

// A float, rounded to the nearest bfloat16 (ties to even), in the high half of each lane. NaN must not round to infinity.
static inline vint round_to_bf16(vfloat x) {
  vint bits = (vint)x, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return ((rounded & ~(x != x)) | ((bits | 0x400000) & (x != x))) & (int32_t)0xffff0000;
}

// Stores x as the operand of a product: nothing in float; one plane in bfloat16; three, each the rest of the ones before.
template <Products P> static inline void store_halves(uint16_t* to, long plane, vfloat x) {
  for (int q = 0; q < planes(P); q++) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to + q * plane, &half, sizeof half);
    x -= (vfloat)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    vint half = round_to_bf16(x);
    for (int i = 0; i < LANES; i++) to[q * plane + i] = (uint32_t)half[i] >> 16;
    x -= (vfloat)half;
#endif
  }
}
