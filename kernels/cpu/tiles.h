// Products on matrix tiles (AMX): eight tile registers of 16 rows x 64 bytes, 16 x 16 x 32 multiply-adds an instruction.
//
//           B  6     7         A block is 32 x 32 of C: four accumulators, and each tile of A and of B that is loaded
//        A  +-----+-----+      is used twice. A tile of A holds 16 rows and 32 k; one of B 32 k (16 pairs) and 16 columns,
//        4  |  0  |  1  |      which is just what a bfloat16 panel holds.
//        5  |  2  |  3  |
//           +-----+-----+
#pragma once

// Linux grants the tiles to a process that asks for them, once for all threads.
static inline bool tiles_granted() {
#if defined(__AMX_BF16__) && defined(__linux__)
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return granted;
#else
  return false;
#endif
}

#if defined(__AMX_BF16__)

// All tiles full for as long as this lives, in this thread. Rows behind M are computed too, and never read.
class TilesInUse {
 public:
  TilesInUse() {
    struct __attribute__((packed)) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    if (tiles_granted()) _tile_loadconfig(&config);
  }
  ~TilesInUse() {
    if (tiles_granted()) _tile_release();
  }
  TilesInUse(const TilesInUse&) = delete;
};

// 16 or 32 rows (ONE or TWO tiles) by 32 columns of C, over `words` pairs of k.
template <bool SIX, bool TWO>
static void tile_block(const uint16_t* A, long lda, long a_plane, const float* B, int width, long b_plane, int words, float* C,
                       long ldc, const char* ahead, bool add) {
  if (add) {
    _tile_loadd(0, C, ldc * 4);
    _tile_loadd(1, C + 16, ldc * 4);
    if (TWO) {
      _tile_loadd(2, C + 16 * ldc, ldc * 4);
      _tile_loadd(3, C + 16 * ldc + 16, ldc * 4);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const long a_bytes = lda * 2, b_bytes = width * 4;
  auto load_a = [&](int plane, int k) {
    _tile_loadd(4, A + plane * a_plane + 2 * k, a_bytes);
    if (TWO) _tile_loadd(5, A + 16 * lda + plane * a_plane + 2 * k, a_bytes);
  };
  auto load_b = [&](int plane, int k) {
    _tile_loadd(6, B + plane * b_plane + (long)k * width, b_bytes);
    _tile_loadd(7, B + plane * b_plane + (long)k * width + 16, b_bytes);
  };
  auto multiply = [] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (TWO) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (int k = 0; k < words; k += 16) {
    for (int q = 0; q < 16; q++)
      for (int plane = 0; plane < (SIX ? 3 : 1); plane++)
        __builtin_prefetch(ahead + plane * b_plane * 4 + (long)(k + q) * 64, 0, 2);
    load_b(0, k);
    if (SIX) {  // in an order that reloads few tiles
      load_a(2, k), multiply();
      load_a(0, k), multiply();
      load_a(1, k), multiply();
      load_b(1, k), multiply();
      load_a(0, k), multiply();
      load_b(2, k), multiply();
    } else {
      load_a(0, k), multiply();
    }
  }
  _tile_stored(0, C, ldc * 4);
  _tile_stored(1, C + 16, ldc * 4);
  if (TWO) {
    _tile_stored(2, C + 16 * ldc, ldc * 4);
    _tile_stored(3, C + 16 * ldc + 16, ldc * 4);
  }
}

// One panel on tiles; false where that is not to be had or would not pay: up to four rows leave a tile mostly empty, and the
// dot-product instruction does as well.
template <Products P>
static bool tile_product(const Operand& A, int M, const float* B, int width, long plane, int words, float* C, long ldc) {
  constexpr bool SIX = P == Products::bf16x6;
  if (!tiles_granted() || (!SIX && M <= 4)) return false;
  for (int k0 = 0; k0 < words; k0 += TILE_SLICE / 2) {
    const int kn = std::min(TILE_SLICE / 2, words - k0);
    for (int j = 0; j < width; j += 32) {
      const float* b = B + (long)k0 * width + j;
      for (int r = 0, block = 0; r < M; r += 32, block++) {
        const int part = std::min(block * (width / 32) + j / 32, width / 16 - 1);  // of the next slice, asked for meanwhile
        const char* ahead = (const char*)(B + (long)(k0 + kn) * width) + (long)part * kn * 64;
        const uint16_t* a = A.halves + r * A.stride + 2 * k0;
        float* c = C + r * ldc + j;
        if (M - r > 16)
          tile_block<SIX, true>(a, A.stride, A.plane, b, width, plane, kn, c, ldc, ahead, k0 > 0);
        else
          tile_block<SIX, false>(a, A.stride, A.plane, b, width, plane, kn, c, ldc, ahead, k0 > 0);
      }
    }
  }
  return true;
}

#else

struct TilesInUse {
  TilesInUse() {}
  ~TilesInUse() {}
};
template <Products P> static bool tile_product(const Operand&, int, const float*, int, long, int, float*, long) { return false; }

#endif
