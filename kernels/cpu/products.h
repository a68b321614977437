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
// Each entry of C is one chain of multiply-adds in the order of k, whatever M is and wherever the slices end, so a row's
// result does not depend on the rows beside it. (A lone row is the exception: it has too few chains to fill the pipeline and
// sums even and odd k apart.)
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

// A packed matrix: `columns` is N padded to whole panels of `width`.
struct Panels {
  const float* data;
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
// floats are 32 KB. The tiles read B once for 32 rows, so there the second level feeds them, and whole columns up to 1024
// were as fast or faster than shorter slices at every width measured (256, 1024).
constexpr int SLICE = 128, TILE_SLICE = 1024;

// acc + a b; in bfloat16 the two products of a pair of k.
template <bool HALF> static inline vfloat multiply_add(vfloat acc, vfloat a, vfloat b) {
  if constexpr (!HALF) return acc + a * b;
#if defined(__AVX512BF16__)
  return (vfloat)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  const vint high = splat((int32_t)0xffff0000);  // a bfloat16 is the high half of a float
  acc += (vfloat)((vint)a << 16) * (vfloat)((vint)b << 16);
  return acc + (vfloat)((vint)a & high) * (vfloat)((vint)b & high);
#endif
}

template <bool HALF, int M, int V>
static void micro_kernel(const float* A, long lda, const float* B, int K, float* C, long ldc, const char* ahead, bool add) {
  constexpr int CHAINS = M == 1 ? 2 : 1;
  vfloat acc[CHAINS][M][V];
  for (int c = 0; c < CHAINS; c++)
    for (int i = 0; i < M; i++)
      for (int j = 0; j < V; j++) acc[c][i][j] = c == 0 && add ? load(C + i * ldc + j * LANES) : vfloat{};
  int k = 0;
  for (; k + CHAINS <= K; k += CHAINS) {
#pragma GCC unroll 2
    for (int c = 0; c < CHAINS; c++) {
      vfloat b[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) b[j] = load(B + ((long)(k + c) * V + j) * LANES);
      if (M > 1) __builtin_prefetch(ahead + (long)k * 64, 0, 2);
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) {
        vfloat a = splat(A[i * lda + k + c]);
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) acc[c][i][j] = multiply_add<HALF>(acc[c][i][j], a, b[j]);
      }
    }
  }
  if constexpr (CHAINS == 2) {
    if (k < K)
      for (int j = 0; j < V; j++)
        acc[0][0][j] = multiply_add<HALF>(acc[0][0][j], splat(A[k]), load(B + ((long)k * V + j) * LANES));
    for (int j = 0; j < V; j++) acc[0][0][j] += acc[1][0][j];
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < V; j++) store(C + i * ldc + j * LANES, acc[0][i][j]);
}

// One panel: blocks of up to ROWS rows, as even as can be, for each slice of K. While a slice is used the next is asked for.
template <bool HALF, int V> static void panel_product(const float* A, long lda, int M, const float* B, int K, float* C, long ldc) {
  const int blocks = (M + ROWS - 1) / ROWS, base = M / blocks, extra = M % blocks;
  const int slice = blocks == 1 ? K : SLICE;
  for (int k0 = 0; k0 < K; k0 += slice) {
    const int kn = std::min(slice, K - k0);
    const bool add = k0 > 0;
    const float* b = B + (long)k0 * V * LANES;
    const char* next = (const char*)(b + (long)kn * V * LANES);
    for (int q = 0, r = 0; q < blocks; q++) {
      const int m = base + (q < extra);
      const float* a = A + r * lda + k0;
      float* c = C + r * ldc;
      const char* ahead = next + (long)std::min(q, V - 1) * kn * 64;
      switch (m) {
        case 1: micro_kernel<HALF, 1, V>(a, lda, b, kn, c, ldc, ahead, add); break;
        case 2: micro_kernel<HALF, 2, V>(a, lda, b, kn, c, ldc, ahead, add); break;
        case 3: micro_kernel<HALF, 3, V>(a, lda, b, kn, c, ldc, ahead, add); break;
        case 4: micro_kernel<HALF, 4, V>(a, lda, b, kn, c, ldc, ahead, add); break;
        case 5: micro_kernel<HALF, 5, V>(a, lda, b, kn, c, ldc, ahead, add); break;
        default: micro_kernel<HALF, 6, V>(a, lda, b, kn, c, ldc, ahead, add); break;
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
    const float* b = B.data + p * panel;
    float* c = C + (long)p * B.width;
    if (HALF && tile_product<P>(A, M, b, B.width, plane, words, c, ldc)) continue;
    const float* a = HALF ? (const float*)A.halves : A.rows;
    const long lda = HALF ? A.stride / 2 : A.stride;
    switch (B.width / LANES) {
      case 1: panel_product<HALF, 1>(a, lda, M, b, words, c, ldc); break;
      case 2: panel_product<HALF, 2>(a, lda, M, b, words, c, ldc); break;
      default: panel_product<HALF, 4>(a, lda, M, b, words, c, ldc); break;
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
