// Candidates of a sampling planner: drawn, rolled out and costed in blocks of rows. Values alone: nothing is kept for an adjoint.
//
//   u = clip(mean + std * noise),   value = sum of costs + penalty * sum |s(z)|^2 + effort * sum mean (u - mean) / std^2
#pragma once

#include "draws.h"
#include "rollout.h"

// Mirrored in pack.py. Row r is candidate r % samples of problem r / samples.
struct Candidates {
  Problem problem;
  const float *mean, *std;  // [problems, T, nu]; mean null: u is given
  const int64_t* keys;      // [problems], what tells problems apart to the random numbers
  int64_t seed;
  int32_t iteration, level;  // the score's
  float penalty, effort;
  float* u;                                                          // [rows, T, nu]
  float *value, *x, *running_cost, *terminal_cost, *change_cost;     // rows first; value null, or the others
  float* distance;                                                   // |s(z)|^2 [rows, T], normalised; null without a score
};

class CandidateBlock {
 public:
  size_t lay_out(const Candidates& candidates, int most, char* base) {
    c = &candidates;
    Arena arena{base};
    rows.lay_out(c->problem, most, arena, nullptr, false);
    noise = arena.take<float>(round_up(rows.T * rows.nu, 4 * LANES));
    distance = arena.take<float>((size_t)rows.T * most), effort = arena.take<float>(most);
    return arena.used;
  }

  void evaluate(int first, int count, Barrier* alone) {
    rows.begin(first, count, 0, 1, alone);
    switch (c->problem.products) {
      case Products::fp32: return evaluate<Products::fp32>();
      case Products::bf16: return evaluate<Products::bf16>();
      case Products::bf16x6: return evaluate<Products::bf16x6>();
    }
  }

 private:
  template <Products P> void evaluate() {
    const Problem& p = c->problem;
    const int T = rows.T, R = rows.R;
    std::fill_n(effort, R, 0.f), std::fill_n(distance, (size_t)T * R, 0.f);
    for (int r = 0; r < R; r++) controls(r);
    rows.states<P>(p.terminal.present || c->x ? T : T - 1, rows.passing.data(), 0);
    std::fill_n(rows.cost, (size_t)T * R, 0.f), std::fill_n(rows.last_cost, R, 0.f);
    if (p.running.present) rows.running<P>(nullptr, true);
    if (p.terminal.present) rows.terminal<P>(nullptr);
    rows.changes(nullptr);
    if (p.score && (c->distance || c->penalty != 0))
      rows.scores<P>(c->level, [&](int row, const float* out) {
        for (int j = 0; j < rows.nz; j++) {
          const float value = out[j] / p.score_sigma[c->level];
          distance[row] += value * value;
        }
      });
    for (int r = 0; r < R; r++) report(r);
  }

  // The controls of a row, drawn or given, and the effort of what was drawn.
  void controls(int r) {
    const int T = rows.T, nu = rows.nu, nx = rows.nx, numbers = T * nu;
    float* u = c->u + (size_t)(rows.first + r) * numbers;
    if (c->mean) {
      const size_t problem = rows.problem_of(r);
      const float *mean = c->mean + problem * numbers, *std = c->std + problem * numbers;
      const uint32_t sample = (rows.first + r) % c->problem.samples, block = (uint32_t)c->iteration << 16;
      for (int n = 0; n < numbers; n += 4 * LANES) normals(c->seed, block + n / 4, sample, c->keys[problem], noise + n);
      for (int n = 0; n < numbers; n++) u[n] = mean[n] + std[n] * noise[n];
      if (c->problem.low)
        for (int n = 0; n < numbers; n++) u[n] = rows.clip(r, n % nu, u[n]);
      for (int n = 0; c->effort != 0 && n < numbers; n++) effort[r] += mean[n] / std[n] * ((u[n] - mean[n]) / std[n]);
    }
    for (int t = 0; t < T; t++) std::copy_n(u + (size_t)t * nu, nu, rows.z_at(t, r) + nx);
  }

  void report(int r) {
    const int T = rows.T, R = rows.R, nx = rows.nx;
    const size_t row = rows.first + r;
    if (c->value) {
      float far = 0;
      for (int t = 0; t < T; t++) far += distance[(size_t)t * R + r];
      c->value[row] = rows.total(r) + c->penalty * far + c->effort * effort[r];
    }
    if (!c->x) return;
    for (int t = 0; t < T; t++) {
      std::copy_n(rows.z_at(t, r), nx, c->x + (row * (T + 1) + t) * nx);
      c->running_cost[row * T + t] = rows.cost[(size_t)t * R + r];
      if (c->distance) c->distance[row * T + t] = distance[(size_t)t * R + r];
    }
    std::copy_n(rows.last + (size_t)r * nx, nx, c->x + (row * (T + 1) + T) * nx);
    c->terminal_cost[row] = rows.last_cost[r], c->change_cost[row] = rows.change[r];
  }

  const Candidates* c = nullptr;
  Rollout rows;
  float *noise, *distance, *effort;  // of a row; [T, R]; [R]
};
