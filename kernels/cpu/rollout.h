// A block of rows rolled out, and what its states and controls cost; with the gradients of the costs where they are asked for.
//
// Time comes first: row t * R + r of z is step t of row r, so that all T * R rows are one matrix.
#pragma once

#include <vector>

#include "memory.h"
#include "problem.h"

struct Rollout {
  // Rows of a pass over all T * R; rows of scratch, a whole number of tiles; floats between rows: 32 more than the widest, off
  // the same cache sets.
  static int pass_rows(const Problem& p, int R) { return std::min(p.horizon * R, p.pass_rows); }
  static int scratch_rows(const Problem& p, int R) { return round_up(std::max(pass_rows(p, R), R), 32); }
  static long stride(const Problem& p) { return p.widest() + 32; }
  static size_t result_floats(const Problem& p, int R) { return (size_t)scratch_rows(p, R) * stride(p); }

  // Lays out what up to `most` rows need. `results`: the buffers that threads share, or null for own ones. `keeps`: networks
  // keep what their gradients need; else gradients must not be asked for.
  void lay_out(const Problem& problem, int most, Arena& arena, float* results, bool keeps) {
    p = &problem;
    T = p->horizon, nx = p->nx, nu = p->nu, nz = nx + nu, ldz = round_up(nz, 32);
    const size_t rows = scratch_rows(*p, most), all = (size_t)T * most;
    w.stride = stride(*p), w.plane = (long)rows * w.stride, w.turn = 0;
    if (results) {
      w.results[0] = results, w.results[1] = results + rows * w.stride;
    } else {  // alone, a product may overwrite the one before
      w.results[0] = w.results[1] = arena.take<float>(rows * w.stride);
    }
    w.values = arena.take<float>(rows * w.stride);
    w.cotangents = keeps ? arena.take<float>(rows * w.stride) : nullptr;
    w.halves = p->products == Products::fp32 ? nullptr : arena.take<uint16_t>(planes(p->products) * w.plane);
    passing.assign(p->most_layers(), Kept{});
    if (!keeps) passing.assign(p->most_layers(), {nullptr, arena.take<float>(w.stride), arena.take<float>(rows), 0});
    for (Kept& kept : passing)
      if (keeps) {
        kept = {arena.take<float>(rows * w.stride), arena.take<float>(rows * w.stride), arena.take<float>(rows), w.stride};
      }
    z = arena.take<float>(all * ldz), last = arena.take<float>((size_t)most * nx);
    difference = arena.take<float>(std::max(nx, nu)), ignored = arena.take<float>(nz);
    cost = arena.take<float>(all), last_cost = arena.take<float>(most), change = arena.take<float>(most);
    if (p->samples > 1) {
      goals = arena.take<float>((size_t)most * std::max(p->running.goal_stride, p->terminal.goal_stride));
      params = arena.take<float>((size_t)most * std::max(p->running.params_stride, p->terminal.params_stride));
    }
  }

  // The rows first_row .. first_row + rows - 1 are those that follow, by thread `id` of so many that share columns.
  void begin(int first_row, int rows, int id, int threads, Barrier* barrier) {
    first = first_row, R = rows;
    w.id = id, w.threads = threads, w.barrier = barrier;
  }

  size_t problem_of(int r) const { return (size_t)(first + r) / p->samples; }
  float* z_at(int t, int r) { return z + ((size_t)t * R + r) * ldz; }
  float low(int r, int j) const { return p->low[problem_of(r) * p->bound_stride + j]; }
  float high(int r, int j) const { return p->high[problem_of(r) * p->bound_stride + j]; }
  float clip(int r, int j, float u) const { return u < low(r, j) ? low(r, j) : u > high(r, j) ? high(r, j) : u; }

  // x_{t+1} = x_t + scale * net(x_t, u_t) for the first `count` steps. `kept`: an entry a layer, for each step `per_step` on.
  template <Products P> void states(int count, const Kept* kept, int per_step) {
    for (int r = 0; r < R; r++) std::copy_n(p->x0 + problem_of(r) * nx, nx, z_at(0, r));
    for (int t = 0; t < count; t++) {
      const float* out = forward<P>(w, *p->dynamics, z_at(t, 0), ldz, R, 0, kept + (size_t)t * per_step);
      for (int r = 0; r < R; r++) {
        float* next = t + 1 < T ? z_at(t + 1, r) : last + (size_t)r * nx;
        for (int j = 0; j < nx; j++) next[j] = z_at(t, r)[j] + p->dynamics_scale[j] * out[r * w.stride + j];
      }
    }
  }

  // Calls f(first row, rows) for passes over all T * R rows, as even as can be so that none is left with a lone row.
  template <class F> void in_passes(F&& f) {
    const int all = T * R, most = pass_rows(*p, R), passes = (all + most - 1) / most;
    for (int i = 0; i < passes; i++) {
      const int from = (long)all * i / passes, to = (long)all * (i + 1) / passes;
      f(from, to - from);
    }
  }

  // Calls f(row, the score network's output) for all T * R rows.
  template <Products P, class F> void scores(int level, F&& f) {
    in_passes([&](int from, int M) {
      const float* out = forward<P>(w, *p->score, z + (size_t)from * ldz, ldz, M, level, passing.data());
      for (int row = 0; row < M; row++) f(from + row, out + row * w.stride);
    });
  }

  // Adds the gradient to g, a row for each of z, unless it is null. Networks give their values only where they are asked for.
  template <Products P> void running(float* g, bool values) {
    const Cost& c = p->running;
    if (c.function) return of_function(c, z, ldz, T, cost, g, ldz);
    if (!c.network) {
      for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) {
          float* g_z = g ? g + ((size_t)t * R + r) * ldz : ignored;
          const float of_x = quadratic(c.x, r, z_at(t, r), g_z);
          cost[t * R + r] = of_x + quadratic(c.u, r, z_at(t, r) + nx, g_z + nx);
        }
      return;
    }
    in_passes([&](int from, int M) {
      const float* pulled = network_cost<P>(c, z + (size_t)from * ldz, ldz, M, values ? cost + from : nullptr, g != nullptr);
      for (int row = 0; g && row < M; row++)
        for (int j = 0; j < nz; j++) g[(size_t)(from + row) * ldz + j] += pulled[row * w.stride + j];
    });
  }

  // Writes the gradient in x_T to g [R, nx], unless it is null.
  template <Products P> void terminal(float* g) {
    const Cost& c = p->terminal;
    if (g) std::fill_n(g, (size_t)R * nx, 0.f);
    if (c.function) return of_function(c, last, nx, 1, last_cost, g, nx);
    if (!c.network) {
      for (int r = 0; r < R; r++) last_cost[r] = quadratic(c.x, r, last + (size_t)r * nx, g ? g + (size_t)r * nx : ignored);
      return;
    }
    const float* pulled = network_cost<P>(c, last, nx, R, last_cost, g != nullptr);
    for (int r = 0; g && r < R; r++) std::copy_n(pulled + r * w.stride, nx, g + (size_t)r * nx);
  }

  // weight * sum of the squared differences between neighbouring controls; its gradient is added to g, unless that is null.
  void changes(float* g) {
    std::fill_n(change, R, 0.f);
    if (p->control_change == 0) return;
    for (int t = 1; t < T; t++)
      for (int r = 0; r < R; r++)
        for (int j = nx; j < nz; j++) {
          const float d = z_at(t, r)[j] - z_at(t - 1, r)[j], pull = 2 * p->control_change * d;
          change[r] += p->control_change * d * d;
          if (!g) continue;
          g[((size_t)t * R + r) * ldz + j] += pull;
          g[((size_t)(t - 1) * R + r) * ldz + j] -= pull;
        }
  }

  float total(int r) const {
    float sum = 0;
    for (int t = 0; t < T; t++) sum += cost[t * R + r];
    return sum + last_cost[r] + change[r];
  }

  const Problem* p = nullptr;
  int first = 0, R = 0, T = 0, nx = 0, nu = 0, nz = 0;
  long ldz = 0;
  Workspace w{};
  std::vector<Kept> passing;          // of the networks that are evaluated and forgotten
  float *z, *last;                    // (x, u), a row for each t, r; x_T [R, nx]
  float *cost, *last_cost, *change;   // [T, R], [R], [R]

 private:
  void of_function(const Cost& c, const float* rows, long ld, int steps, float* value, float* gradient, long ldg) {
    const float *goal = of_rows(c.goal, c.goal_stride, goals), *given = of_rows(c.params, c.params_stride, params);
    c.function(rows, ld, goal, c.goal_stride, given, c.params_stride, 0, steps, R, (int)problem_of(0), value, gradient, ldg);
  }

  // What a function reads, a row for each of ours: copied together where a problem has several.
  const float* of_rows(const float* of_problems, int width, float* together) const {
    if (!of_problems || p->samples == 1) return of_problems ? of_problems + (size_t)first * width : nullptr;
    for (int r = 0; r < R; r++) std::copy_n(of_problems + problem_of(r) * width, width, together + (size_t)r * width);
    return together;
  }

  // Adds the gradient at x to `gradient` and returns the value.
  float quadratic(const Quadratic& q, int r, const float* x, float* gradient) {
    const size_t goal = problem_of(r) * q.goal_stride;
    for (int j = 0; j < q.n; j++) difference[j] = q.goal ? x[j] - q.goal[goal + j] : x[j];
    float value = 0;
    for (int i = 0; i < q.n; i++) {
      float sum = 0;
      for (int j = 0; j < q.n; j++) sum += q.matrix[(size_t)i * q.n + j] * difference[j];
      gradient[i] += sum;
      value += 0.5f * sum * difference[i];
    }
    return value;
  }

  // Values, unless that is null, and the gradient, where it is asked for.
  template <Products P>
  const float* network_cost(const Cost& c, const float* rows, long ld, int M, float* value, bool gradient) {
    const float* out = forward<P>(w, *c.network, rows, ld, M, 0, passing.data());
    for (int row = 0; row < M; row++) {
      if (value) value[row] = c.sign * out[row * w.stride];
      if (gradient) w.row(w.cotangents, row)[0] = c.sign;
    }
    return gradient ? backward<P>(w, *c.network, M, 0, passing.data()) : nullptr;
  }

  float *difference, *ignored, *goals = nullptr, *params = nullptr;  // scratch; `ignored`: gradients that nobody asked for
};
