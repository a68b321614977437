// The whole plan of score-guided shooting in one call: for each iteration a rollout, the scores, costs and their gradients of
// all steps at once, the adjoint sweep, Adam, projection; and a last pass that evaluates the result. block.h does that for a
// block of rows; this file shares the rows, or the columns of the products, among threads, and holds what Python calls.
//
// Two ways to share the work. With many problems each thread takes blocks of some tens of rows and plans each block from the
// first iteration to the last, so nothing is shared and everything but the weights stays in its caches. With few, all threads
// plan the same rows and share the columns of every product (see network.h); each keeps its own copy of the rest.
#include "block.h"

namespace {

// Blocks of rows, each planned alone by the thread that is free. With a time limit each block gets its share of what is left.
void by_rows(const Plan& p) {
  const int blocks = (p.rows + p.block_rows - 1) / p.block_rows, threads = std::min(p.threads, blocks);
  const int most = (p.rows + blocks - 1) / blocks;
  const size_t bytes = Block().lay_out(p, most, nullptr, nullptr);
  std::vector<Memory> memory;
  for (int i = 0; i < threads; i++) memory.emplace_back((char*)allocate(bytes));
  std::atomic<int> next{0};
  const auto start = Clock::now();
  run_on_threads(threads, [&](int id, int count) {
    Block block;
    Barrier alone;
    std::atomic<bool> out_of_time{false};
    for (int i; (i = next.fetch_add(1)) < blocks;) {
      const int first = (long)p.rows * i / blocks, rows = (long)p.rows * (i + 1) / blocks - first;
      const int rounds = (blocks - i + count - 1) / count;  // that this thread has yet to do, this one included
      block.lay_out(p, rows, memory[id].get(), nullptr);
      block.plan(first, rows, 0, 1, &alone, (p.seconds - seconds_since(start)) / rounds, &out_of_time);
    }
    if (p.clock) block.tell(p.clock + id * (int)Stage::count);
  });
}

// All rows by all threads, which share the columns of every product.
void by_columns(const Plan& p) {
  const size_t bytes = Block().lay_out(p, p.rows, nullptr, (float*)64);
  std::vector<Memory> memory;
  for (int i = 0; i < p.threads; i++) memory.emplace_back((char*)allocate(bytes));
  Memory results((char*)allocate(2 * Block::result_floats(p, p.rows) * sizeof(float)));
  Barrier barrier;
  std::atomic<bool> out_of_time{false};
  run_on_threads(p.threads, [&](int id, int count) {
    Block block;
    block.lay_out(p, p.rows, memory[id].get(), (float*)results.get());
    block.plan(0, p.rows, id, count, &barrier, p.seconds, &out_of_time);
    if (p.clock) block.tell(p.clock + id * (int)Stage::count);
  });
}

}  // namespace

extern "C" {

// Solves the plan; 0, or 1 where memory ran out.
int sgp_solve(const Plan* plan) {
  try {
    if (plan->products != Products::fp32) tiles_granted();  // asked before the threads start
    plan->by_columns ? by_columns(*plan) : by_rows(*plan);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

// What this build is: lanes a vector, vectors a full panel, whether it takes whole numbers, whether tiles are to be had.
void sgp_machine(int32_t* lanes, int32_t* vectors, int32_t* integers, int32_t* tiles) {
  *lanes = LANES, *vectors = VECTORS, *integers = INTEGERS, *tiles = tiles_granted();
}

// Sizes of Layer, Network, Cost and Plan.
void sgp_sizes(int32_t* sizes) {
  sizes[0] = sizeof(Layer), sizes[1] = sizeof(Network), sizes[2] = sizeof(Cost), sizes[3] = sizeof(Plan);
}

// Asks for huge pages under memory that is about to be filled.
void sgp_prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  const uintptr_t from = ((uintptr_t)memory + 4095) / 4096 * 4096, to = ((uintptr_t)memory + bytes) / 4096 * 4096;
  if (to > from) madvise((void*)from, to - from, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}
}
