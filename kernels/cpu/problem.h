// What is planned, as Python passes it: models, costs, starts and bounds. Mirrored by ctypes structures in pack.py.
//
// A row is one course of controls. `samples` rows side by side belong to a problem, and starts, bounds, goals and parameters
// have a row a problem. All arrays are contiguous and float32.
#pragma once

#include "network.h"

// d' S d / 2 with S symmetric, so that the gradient is S d; d = x - goal. A goal a problem (`goal_stride` = n) or one (0) or null.
struct Quadratic {
  const float *matrix, *goal;
  int32_t n, goal_stride;
};

// A cost given as a function: `steps` of `count` rows each, row t * count + r is step `step` + t of problem `first` + r. Writes
// the values and adds to the gradient, unless it was compiled without one. z holds x and then u; goal and params have a row a
// problem (their `ld` from one to the next), the first of them that of problem `first`.
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

struct Problem {
  int32_t rows, samples, horizon, nx, nu;
  Products products;
  int32_t threads, block_rows, pass_rows;  // rows that a thread plans together, and those of a pass over all their steps

  int32_t bound_stride;             // 0: one for all problems
  const float *x0, *low, *high;     // bounds null: none
  const Network *dynamics, *score;  // score null: none
  const float* dynamics_scale;      // x' = x + scale * net
  const float* score_sigma;         // per level, what the network's output is divided by
  Cost running, terminal;
  float control_change, reserved;

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
