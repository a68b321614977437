// Threads for one call, and what they meet at.
//
// Threads live as long as a call: some tens of microseconds to start them, and in return nothing of ours runs between calls,
// a fork finds no locks and no missing threads, and two planners in two Python threads know nothing of each other.
#pragma once

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "simd.h"

static inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A barrier for steps of a few microseconds: who arrives last opens the next generation, the others spin on its number.
// After some ten microseconds of spinning the core is offered to others, for machines with more threads than cores.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const int now = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(now + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == now; spins++) {
      pause_briefly();
      if (spins == 256) {
        std::this_thread::yield();
        spins = 0;
      }
    }
  }

 private:  // on cache lines of their own: arriving must not disturb those who watch the generation
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// Where helpers begin: not on the caller's core. Linux often starts a new thread there, where cores were idle before the call,
// and moves it only when it next balances its load, some ten milliseconds later: until then both take turns on one core at
// every barrier. A controller that waits between two plans of twenty milliseconds met that in nearly all of them.
class Elsewhere {
 public:
  Elsewhere() {
#if defined(__linux__)
    const int own = sched_getcpu();
    known_ = own >= 0 && own < CPU_SETSIZE && sched_getaffinity(0, sizeof cores_, &cores_) == 0 && CPU_COUNT(&cores_) > 1;
    if (known_) CPU_CLR(own, &cores_);
#endif
  }

  void send(std::thread& helper) {
#if defined(__linux__)
    if (known_) pthread_setaffinity_np(helper.native_handle(), sizeof cores_, &cores_);
#else
    (void)helper;
#endif
  }

#if defined(__linux__)
 private:
  bool known_;
  cpu_set_t cores_;
#endif
};

// Runs `work(id, threads)` on up to `wanted` threads, the caller among them. Where the system gives fewer, fewer do the work:
// all wait until it is known how many there are.
template <class Work> static void run_on_threads(int wanted, Work&& work) {
  std::atomic<int> count{0};
  std::vector<std::thread> helpers;
  helpers.reserve(wanted);
  Elsewhere elsewhere;
  try {
    for (int id = 1; id < wanted; id++) {
      helpers.emplace_back([&, id] {
        int threads;
        while ((threads = count.load(std::memory_order_acquire)) == 0) pause_briefly();
        work(id, threads);
      });
      elsewhere.send(helpers.back());
    }
  } catch (const std::system_error&) {
  }
  const int threads = (int)helpers.size() + 1;
  count.store(threads, std::memory_order_release);
  work(0, threads);
  for (auto& helper : helpers) helper.join();
}
