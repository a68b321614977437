// A plan of score-guided shooting, as Python passes it. Mirrored by ctypes structures in pack.py; `sgp_sizes` lets it check
// that they agree. Rows are starts of problems; every array has rows first.
#pragma once

#include "problem.h"

// Where the time of a plan goes. In the order of `STAGES` in pack.py; `last` is the pass after all iterations.
enum class Stage { rollout, cost, score, adjoint, update, last, count };

struct Plan {
  Problem problem;
  int32_t iterations, settled, by_columns, tanh_bounds;

  const float *beta, *step_size;  // per iteration
  const int32_t* level;
  double adam[3], clip, tolerance, seconds;  // clip, seconds: infinite where there is no limit
  float penalty;                             // what |s(z)|^2 / 2 is weighted with where plans are ranked
  int32_t look;  // under a limit of time, every so many iterations the iterate is held against the best so far

  float *v, *m, *s, *count;  // in and out: decision variables [T, nu], Adam's moments and step count
  uint8_t *active, *diverged, *converged;
  int32_t* taken;
  float* history;  // [iterations], or null
  float *x, *costate, *grad_u, *running_cost, *terminal_cost, *change_cost, *score_value;  // of the last pass
  double* clock;  // [threads, Stage::count], where the seconds of each thread's stages are added; or null
};
