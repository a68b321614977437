// The whole plan of score-guided shooting in one call: for each iteration a rollout, the scores, costs and their gradients of
// all steps at once, the adjoint sweep, Adam, projection; and a last pass that evaluates the result. block.h does that for a
// block of rows, and candidates.h what sampling planners ask for; this file shares the rows, or the columns of the products, among threads, and holds what Python calls.
//
// Two ways to share the work. With many problems each thread takes blocks of some tens of rows and plans each block from the
// first iteration to the last, so nothing is shared and everything but the weights stays in its caches. With few, all threads
// plan the same rows and share the columns of every product (see network.h); each keeps its own copy of the rest.
#include "block.h"
#include "candidates.h"

namespace {

// The blocks of a call's rows, each for the thread that is free and asks for the next one.
class Blocks {
 public:
  explicit Blocks(const Problem& p) : rows_(p.rows), count_((p.rows + p.block_rows - 1) / p.block_rows) {}
  int count() const { return count_; }
  int most() const { return (rows_ + count_ - 1) / count_; }

  // Calls f(first row, rows, how many blocks are left with this one) until none is.
  template <class F> void each(F&& f) {
    for (int i; (i = next_.fetch_add(1)) < count_;) {
      const int first = (long)rows_ * i / count_;
      f(first, (int)((long)rows_ * (i + 1) / count_) - first, count_ - i);
    }
  }

 private:
  const int rows_, count_;
  std::atomic<int> next_{0};
};

std::vector<Memory> for_threads(int threads, size_t bytes) {
  std::vector<Memory> memory;
  for (int i = 0; i < threads; i++) memory.emplace_back((char*)allocate(bytes));
  return memory;
}

// Blocks of rows, each planned alone. With a time limit each block gets its share of what is left.
void by_rows(const Plan& p) {
  Blocks blocks(p.problem);
  const int threads = std::min(p.problem.threads, blocks.count());
  const auto memory = for_threads(threads, Block().lay_out(p, blocks.most(), nullptr, nullptr));
  const auto start = Clock::now();
  run_on_threads(threads, [&](int id, int count) {
    Block block;
    Barrier alone;
    std::atomic<bool> out_of_time{false};
    blocks.each([&](int first, int rows, int left) {
      const int rounds = (left + count - 1) / count;  // that this thread has yet to do, this one included
      block.lay_out(p, rows, memory[id].get(), nullptr);
      block.plan(first, rows, 0, 1, &alone, (p.seconds - seconds_since(start)) / rounds, &out_of_time);
    });
    if (p.clock) block.tell(p.clock + id * (int)Stage::count);
  });
}

// All rows by all threads, which share the columns of every product.
void by_columns(const Plan& p) {
  const int rows = p.problem.rows, threads = p.problem.threads;
  const auto memory = for_threads(threads, Block().lay_out(p, rows, nullptr, (float*)64));
  Memory results((char*)allocate(2 * Rollout::result_floats(p.problem, rows) * sizeof(float)));
  Barrier barrier;
  std::atomic<bool> out_of_time{false};
  run_on_threads(threads, [&](int id, int count) {
    Block block;
    block.lay_out(p, rows, memory[id].get(), (float*)results.get());
    block.plan(0, rows, id, count, &barrier, p.seconds, &out_of_time);
    if (p.clock) block.tell(p.clock + id * (int)Stage::count);
  });
}

// Blocks of candidates. Costs of all kinds, and no barrier: nothing is shared but the weights.
void evaluate(const Candidates& c) {
  Blocks blocks(c.problem);
  const int threads = std::min(c.problem.threads, blocks.count());
  const auto memory = for_threads(threads, CandidateBlock().lay_out(c, blocks.most(), nullptr));
  run_on_threads(threads, [&](int id, int) {
    TilesInUse tiles;
    CandidateBlock block;
    Barrier alone;
    blocks.each([&](int first, int rows, int) {
      block.lay_out(c, rows, memory[id].get());
      block.evaluate(first, rows, &alone);
    });
  });
}

// 0, or 1 where memory ran out. Tiles are asked for before the threads start.
template <class Work> int attempt(Products products, Work&& work) {
  try {
    if (products != Products::fp32) tiles_granted();
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

extern "C" {

// Solves the plan.
int sgp_solve(const Plan* plan) {
  return attempt(plan->problem.products, [&] { plan->by_columns ? by_columns(*plan) : by_rows(*plan); });
}

// Draws candidates, or takes them as given, and evaluates them.
int sgp_evaluate(const Candidates* candidates) {
  return attempt(candidates->problem.products, [&] { evaluate(*candidates); });
}

// What this build is: lanes a vector, vectors a full panel, whether it takes whole numbers, whether tiles are to be had.
void sgp_machine(int32_t* lanes, int32_t* vectors, int32_t* integers, int32_t* tiles) {
  *lanes = LANES, *vectors = VECTORS, *integers = INTEGERS, *tiles = tiles_granted();
}

// Sizes of Layer, Network, Cost, Problem, Plan and Candidates.
void sgp_sizes(int32_t* sizes) {
  sizes[0] = sizeof(Layer), sizes[1] = sizeof(Network), sizes[2] = sizeof(Cost), sizes[3] = sizeof(Problem);
  sizes[4] = sizeof(Plan), sizes[5] = sizeof(Candidates);
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
