// Memory for a call: blocks on huge pages, and how they are shared out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

// Big blocks on huge pages: a weight matrix or a block's activations span more pages than the address cache has entries.
constexpr size_t HUGE_PAGE = 2 << 20;

static inline void* allocate(size_t bytes) {
  const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 4096;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  void* block = std::aligned_alloc(alignment, bytes);
  if (!block) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == HUGE_PAGE) madvise(block, bytes, MADV_HUGEPAGE);
#endif
  return block;
}
struct Free {
  void operator()(void* block) const { std::free(block); }
};
using Memory = std::unique_ptr<char, Free>;

// Hands out pieces of one block. A first round with no block (null) tells how big it must be.
struct Arena {
  char* base;
  size_t used = 0;
  template <class E> E* take(size_t count) {
    E* piece = (E*)((uintptr_t)base + used);
    used += (count * sizeof(E) + 63) / 64 * 64 + 64;  // a line between: rows of equal length would share cache sets
    return piece;
  }
};
