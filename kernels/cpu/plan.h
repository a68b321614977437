// What Python passes: one `Plan` a call. Mirrored by ctypes structures in pack.py; `sgp_sizes` lets it check that they agree.
//
// Rows are problems (or starts of problems); every array has rows first and is contiguous. All arrays are float32.
#pragma once

#include "network.h"

// d' S d / 2 with S symmetric, so that the gradient is S d; d = x - goal. A goal a row (`goal_stride` = n) or one (0) or null.
struct Quadratic {
  const float *matrix, *goal;
  int32_t n, goal_stride;
};

// A cost given as a function: `steps` of `count` rows each, row t * count + r is step `step` + t of problem `first` + r. Writes
// the values and adds to the gradient. z holds x and then u; goal and params have a row a problem (their `ld` from one to the
// next), the first of them that of problem `first`.
typedef void (*CostFunction)(
    const float* z, long ldz, const float* goal, long ldgoal, const float* params, long ldparams, int step, int steps, int count,
    int first, float* value, float* gradient, long ldg);

// A cost is a network of the row (times `sign`), a function of it, or quadratic forms of x and u.
struct Cost {
  const Network* network;
  CostFunction function;
  const float *goal, *params;  // the function's
  Quadratic x, u;
  float sign;
  int32_t present, goal_stride, params_stride;
};

// Where the time of a plan goes. In the order of `STAGES` in pack.py; `last` is the pass after all iterations.
enum class Stage { rollout, cost, score, adjoint, update, last, count };

struct Plan {
  int32_t rows, horizon, nx, nu, iterations, settled;
  Products products;
  int32_t threads, by_columns, block_rows, pass_rows, tanh_bounds;

  const Network *dynamics, *score;  // score null: none
  const float* dynamics_scale;      // x' = x + scale * net
  const float* score_sigma;         // per level, what the network's output is divided by
  Cost running, terminal;
  float control_change, penalty;  // penalty: what |s(z)|^2 / 2 is weighted with where plans are ranked

  const float *beta, *step_size;  // per iteration
  const int32_t* level;
  double adam[3], clip, tolerance, seconds;  // clip, seconds: infinite where there is no limit
  int32_t look, unused;  // under a limit of time, every so many iterations the iterate is held against the best so far

  const float *x0, *low, *high;  // bounds null: none; `bound_stride` 0: one for all rows
  int32_t bound_stride, reserved;

  float *v, *m, *s, *count;  // in and out: decision variables [T, nu], Adam's moments and step count
  uint8_t *active, *diverged, *converged;
  int32_t* taken;
  float* history;  // [iterations], or null
  float *x, *costate, *grad_u, *running_cost, *terminal_cost, *change_cost, *score_value;  // of the last pass
  double* clock;  // [threads, Stage::count], where the seconds of each thread's stages are added; or null

  // Calls f(layer) for every layer of every network.
  template <class F> void each_layer(F&& f) const {
    for (const Network* net : {dynamics, score, running.network, terminal.network})
      for (int l = 0; net && l < net->count; l++) f(net->layers[l]);
  }
  int widest() const {  // in whole 64
    int widest = 64;
    each_layer([&](const Layer& layer) { widest = std::max({widest, layer.inputs, layer.width}); });
    return round_up(widest, 64);
  }
  int most_layers() const {
    int layers = 0;
    for (const Network* net : {dynamics, score, running.network, terminal.network})
      if (net) layers = std::max(layers, net->count);
    return layers;
  }
};
