// A block of rows planned from the first iteration to the last: rollout, scores, costs, adjoint, Adam, projection, status.
#pragma once

#include <chrono>
#include <cstdlib>
#include <limits>
#include <vector>

#include "memory.h"
#include "plan.h"

using Clock = std::chrono::steady_clock;
static inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A block of rows, planned by one thread (or by each of several, whose `Workspace` says which columns are theirs).
// Time comes first: row t * R + r of z is step t of problem r, so that all T * R rows are one matrix.
class Block {
 public:
  // Rows of scratch, a whole number of tiles, and floats between rows: 32 more than the widest, off the same cache sets.
  static int scratch_rows(const Plan& p, int R) { return round_up(std::max(pass_rows(p, R), R), 32); }
  static long stride(const Plan& p) { return p.widest() + 32; }
  static size_t result_floats(const Plan& p, int R) { return (size_t)scratch_rows(p, R) * stride(p); }

  // Lays out what a block of up to R rows needs; returns the bytes. `results`: the shared buffers, or null for own ones.
  size_t lay_out(const Plan& plan, int R, char* base, float* results) {
    p = &plan;
    T = plan.horizon, nx = plan.nx, nu = plan.nu, nz = nx + nu, ldz = round_up(nz, 32);
    const size_t rows = scratch_rows(plan, R), all = (size_t)T * R;
    Arena arena{base};
    w.stride = stride(plan), w.plane = (long)rows * w.stride, w.turn = 0;
    if (results) {
      w.results[0] = results, w.results[1] = results + rows * w.stride;
    } else {  // alone, a product may overwrite the one before
      w.results[0] = w.results[1] = arena.take<float>(rows * w.stride);
    }
    w.values = arena.take<float>(rows * w.stride), w.cotangents = arena.take<float>(rows * w.stride);
    w.halves = plan.products == Products::fp32 ? nullptr : arena.take<uint16_t>(planes(plan.products) * w.plane);
    auto keep = [&](const Layer& L, size_t count) {
      Kept kept{};
      if (L.activation != Activation::identity) kept.activation = arena.take<float>(count * w.stride);
      if (L.gamma) kept.normal = arena.take<float>(count * w.stride), kept.rstd = arena.take<float>(count);
      return kept;
    };
    steps.clear(), passing.clear();
    for (int t = 0; t < T; t++)
      for (int l = 0; l < plan.dynamics->count; l++) steps.push_back(keep(plan.dynamics->layers[l], R));
    for (int l = 0; l < plan.most_layers(); l++) {  // for the networks that are evaluated and forgotten
      Kept kept{};
      kept.activation = arena.take<float>(rows * w.stride), kept.normal = arena.take<float>(rows * w.stride);
      kept.rstd = arena.take<float>(rows);
      passing.push_back(kept);
    }
    z = arena.take<float>(all * ldz), g = arena.take<float>(all * ldz), score = arena.take<float>(all * nz);
    last = arena.take<float>((size_t)R * nx), costate = arena.take<float>((size_t)(T + 1) * R * nx);
    difference = arena.take<float>(std::max(nx, nu));
    cost = arena.take<float>(all), last_cost = arena.take<float>(R), change = arena.take<float>(R);
    return arena.used;
  }

  // Plans the rows first .. first + R - 1 until all iterations are done, all rows have stopped, or `budget` seconds are over.
  void plan(int first_row, int rows, int id, int threads, Barrier* barrier, double budget, std::atomic<bool>* out_of_time) {
    first = first_row, R = rows;
    w.id = id, w.threads = threads, w.barrier = barrier;
    switch (p->products) {
      case Products::fp32: return iterate<Products::fp32>(budget, out_of_time);
      case Products::bf16: return iterate<Products::bf16>(budget, out_of_time);
      case Products::bf16x6: return iterate<Products::bf16x6>(budget, out_of_time);
    }
  }

  // Adds the seconds of all that was planned with this block; `clock` [Stage::count].
  void tell(double* clock) const {
    for (int s = 0; s < (int)Stage::count; s++) clock[s] += spent[s];
  }

 private:
  static int pass_rows(const Plan& p, int R) { return std::min(p.horizon * R, p.pass_rows); }

  float* z_at(int t, int r) { return z + ((size_t)t * R + r) * ldz; }
  float* g_at(int t, int r) { return g + ((size_t)t * R + r) * ldz; }
  float* costate_at(int t, int r) { return costate + ((size_t)t * R + r) * nx; }
  float* control_of(float* array, int t, int r) { return array + ((size_t)(first + r) * T + t) * nu; }  // [rows, T, nu]
  float low(int r, int j) const { return p->low[(size_t)(first + r) * p->bound_stride + j]; }
  float high(int r, int j) const { return p->high[(size_t)(first + r) * p->bound_stride + j]; }
  float clip(int r, int j, float u) const { return u < low(r, j) ? low(r, j) : u > high(r, j) ? high(r, j) : u; }
  float project(int r, int j, float v) const { return !p->low || p->tanh_bounds ? v : clip(r, j, v); }

  template <Products P> void iterate(double budget, std::atomic<bool>* out_of_time) {
    TilesInUse tiles;
    const auto start = Clock::now();
    const bool limited = budget < std::numeric_limits<double>::infinity();
    const bool writes = w.id == 0;
    v.resize((size_t)R * T * nu), m.resize(v.size()), s.resize(v.size()), grad.resize(v.size());
    const size_t offset = (size_t)first * T * nu;
    std::copy_n(p->v + offset, v.size(), v.begin());
    std::copy_n(p->m + offset, m.size(), m.begin());
    std::copy_n(p->s + offset, s.size(), s.begin());
    count.assign(p->count + first, p->count + first + R);
    good = v, best = v;
    best_rank.assign(R, std::numeric_limits<float>::infinity());
    active.assign(R, 1), diverged.assign(R, 0), converged.assign(R, 0), taken.assign(R, 0);
    int reached = p->iterations;
    lap(Stage::count);
    for (int i = 0; i < p->iterations; i++) {
      if (limited) {  // all threads must see the same answer: the first one asks the clock
        if (writes) out_of_time->store(seconds_since(start) > budget, std::memory_order_relaxed);
        w.barrier->wait(w.threads);
        const bool over = out_of_time->load(std::memory_order_relaxed);
        w.barrier->wait(w.threads);
        if (over) {
          reached = i;
          break;
        }
      }
      const bool looks = limited && i % p->look == 0;
      evaluate<P>(i, p->history != nullptr || looks, false);
      if (looks) consider<P>();
      if (p->history && writes)
        for (int r = 0; r < R; r++)
          if (active[r]) p->history[(size_t)(first + r) * p->iterations + i] = total(r);
      judge(i >= p->settled);
      if (std::find(active.begin(), active.end(), 1) == active.end()) break;
      step(p->step_size[i]);
      lap(Stage::update);
    }
    const auto end = [&] {
      do evaluate<P>(p->iterations - 1, true, true);
      while (judge(reached >= p->settled));  // again where the last step led some rows astray: they went back to before it
    };
    end();
    if (reached < p->iterations && go_back<P>()) end();
    if (writes) report();
    lap(Stage::last);
  }

  // The rank of row r at the present iterate: task cost, and the distance to the data at the last level.
  template <Products P> void ranks() {
    rank.resize(R);
    for (int r = 0; r < R; r++) rank[r] = total(r);
    if (!p->score || p->penalty == 0) return;
    const int level = p->level[p->iterations - 1];
    in_passes([&](int from, int M) {
      const float* out = forward<P>(w, *p->score, z + (size_t)from * ldz, ldz, M, level, passing.data());
      for (int row = 0; row < M; row++) {
        float square = 0;
        for (int j = 0; j < nz; j++) {
          const float value = out[row * w.stride + j] / p->score_sigma[level];
          square += value * value;
        }
        rank[(from + row) % R] += 0.5f * p->penalty * square;
      }
    });
  }

  // Keeps the iterate where it is better than all before.
  template <Products P> void consider() {
    ranks<P>();
    for (int r = 0; r < R; r++)
      if (rank[r] < best_rank[r]) {
        best_rank[r] = rank[r];
        std::copy_n(v.begin() + (size_t)r * T * nu, T * nu, best.begin() + (size_t)r * T * nu);
      }
  }

  // Out of time: the best iterates come back where the last is worse; rows that have converged or diverged stay. Whether any did.
  template <Products P> bool go_back() {
    ranks<P>();
    bool any = false;
    for (int r = 0; r < R; r++)
      if (active[r] && !(rank[r] <= best_rank[r])) {
        std::copy_n(best.begin() + (size_t)r * T * nu, T * nu, v.begin() + (size_t)r * T * nu);
        any = true;
      }
    return any;
  }

  // Gives the time since the last lap to a stage, or to none (`count`); only where the caller wants to know.
  void lap(Stage stage) {
    if (!p->clock) return;
    const auto now = Clock::now();
    if (stage != Stage::count) spent[(int)stage] += std::chrono::duration<double>(now - mark).count();
    mark = now;
  }

  // One pass: states, costs where `values` asks for them, the gradient in v. The last dynamics step matters only to a terminal
  // cost, and to who reads the plan (`complete`).
  template <Products P> void evaluate(int i, bool values, bool complete) {
    const auto done = [&](Stage stage) { lap(complete ? Stage::last : stage); };
    controls();
    const bool ends = p->terminal.present;
    rollout<P>(ends || complete ? T : T - 1);
    done(Stage::rollout);
    std::fill_n(g, (size_t)T * R * ldz, 0.f);
    // A score without weight is evaluated only for the telemetry of the last pass.
    if (p->score && (p->beta[i] != 0 || complete)) scores<P>(p->level[i], p->beta[i], complete);
    if (p->score) done(Stage::score);
    running<P>(values);
    if (ends) terminal<P>();
    if (!ends) std::fill_n(last_cost, R, 0.f), std::fill_n(costate_at(T, 0), (size_t)R * nx, 0.f);
    changes();
    done(Stage::cost);
    sweep<P>(ends);
    for (int r = 0; r < R; r++)
      for (int t = 0; t < T; t++)
        for (int j = 0; j < nu; j++) {
          const size_t at = ((size_t)r * T + t) * nu + j;
          float slope = 1;
          if (p->tanh_bounds) {
            const float th = std::tanh(v[at]);
            slope = (high(r, j) - low(r, j)) / 2 * (1 - th * th);
          }
          grad[at] = g_at(t, r)[nx + j] * slope;
        }
    done(Stage::adjoint);
  }

  void controls() {
    for (int t = 0; t < T; t++)
      for (int r = 0; r < R; r++)
        for (int j = 0; j < nu; j++) {
          float u = v[((size_t)r * T + t) * nu + j];
          if (p->tanh_bounds) {  // rounding may pass a limit by an ulp
            u = (high(r, j) + low(r, j)) / 2 + (high(r, j) - low(r, j)) / 2 * std::tanh(u);
            u = u < low(r, j) ? low(r, j) : u > high(r, j) ? high(r, j) : u;
          }
          z_at(t, r)[nx + j] = u;
        }
  }

  // x_{t+1} = x_t + scale * net(x_t, u_t) for the first `count` steps
  template <Products P> void rollout(int count) {
    for (int r = 0; r < R; r++) std::copy_n(p->x0 + (size_t)(first + r) * nx, nx, z_at(0, r));
    for (int t = 0; t < count; t++) {
      const float* out = forward<P>(w, *p->dynamics, z_at(t, 0), ldz, R, 0, &steps[(size_t)t * p->dynamics->count]);
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

  // g -= beta s(z), s = net / (sigma k)
  template <Products P> void scores(int level, float beta, bool keep) {
    in_passes([&](int from, int M) {
      const float* out = forward<P>(w, *p->score, z + (size_t)from * ldz, ldz, M, level, passing.data());
      for (int row = 0; row < M; row++)
        for (int j = 0; j < nz; j++) {
          const float value = out[row * w.stride + j] / p->score_sigma[level] / p->score->scale[j];
          g[(size_t)(from + row) * ldz + j] -= beta * value;
          if (keep) score[(size_t)(from + row) * nz + j] = value;
        }
    });
  }

  template <Products P> void running(bool values) {
    const Cost& c = p->running;
    if (c.function) return of_function(c, z, ldz, T, cost, g, ldz);
    if (!c.network) {
      for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) {
          const float of_x = quadratic(c.x, r, z_at(t, r), g_at(t, r));
          cost[t * R + r] = of_x + quadratic(c.u, r, z_at(t, r) + nx, g_at(t, r) + nx);
        }
      return;
    }
    in_passes([&](int from, int M) {
      const float* pulled = network_cost<P>(c, z + (size_t)from * ldz, ldz, M, values ? cost + from : nullptr);
      for (int row = 0; row < M; row++)
        for (int j = 0; j < nz; j++) g[(size_t)(from + row) * ldz + j] += pulled[row * w.stride + j];
    });
  }

  // Leaves the gradient in x_T as the last costate.
  template <Products P> void terminal() {
    const Cost& c = p->terminal;
    std::fill_n(costate_at(T, 0), (size_t)R * nx, 0.f);
    if (c.function) return of_function(c, last, nx, 1, last_cost, costate_at(T, 0), nx);
    if (!c.network) {
      for (int r = 0; r < R; r++) last_cost[r] = quadratic(c.x, r, last + (size_t)r * nx, costate_at(T, r));
      return;
    }
    const float* pulled = network_cost<P>(c, last, nx, R, last_cost);
    for (int r = 0; r < R; r++) std::copy_n(pulled + r * w.stride, nx, costate_at(T, r));
  }

  void of_function(const Cost& c, const float* rows, long ld, int steps, float* value, float* gradient, long ldg) {
    const float* goal = c.goal ? c.goal + (size_t)first * c.goal_stride : nullptr;
    const float* params = c.params ? c.params + (size_t)first * c.params_stride : nullptr;
    c.function(rows, ld, goal, c.goal_stride, params, c.params_stride, 0, steps, R, first, value, gradient, ldg);
  }

  // Adds the gradient at x to `gradient` and returns the value.
  float quadratic(const Quadratic& q, int r, const float* x, float* gradient) {
    for (int j = 0; j < q.n; j++) difference[j] = q.goal ? x[j] - q.goal[(size_t)(first + r) * q.goal_stride + j] : x[j];
    float value = 0;
    for (int i = 0; i < q.n; i++) {
      float sum = 0;
      for (int j = 0; j < q.n; j++) sum += q.matrix[(size_t)i * q.n + j] * difference[j];
      gradient[i] += sum;
      value += 0.5f * sum * difference[i];
    }
    return value;
  }

  template <Products P> const float* network_cost(const Cost& c, const float* rows, long ld, int M, float* value) {
    const float* out = forward<P>(w, *c.network, rows, ld, M, 0, passing.data());
    for (int row = 0; row < M; row++) {
      if (value) value[row] = c.sign * out[row * w.stride];
      w.row(w.cotangents, row)[0] = c.sign;
    }
    return backward<P>(w, *c.network, M, 0, passing.data());
  }

  // weight * sum of the squared differences between neighbouring controls
  void changes() {
    std::fill_n(change, R, 0.f);
    if (p->control_change == 0) return;
    for (int t = 1; t < T; t++)
      for (int r = 0; r < R; r++)
        for (int j = nx; j < nz; j++) {
          const float d = z_at(t, r)[j] - z_at(t - 1, r)[j], pull = 2 * p->control_change * d;
          change[r] += p->control_change * d * d;
          g_at(t, r)[j] += pull;
          g_at(t - 1, r)[j] -= pull;
        }
  }

  // The costates backward in time: lambda_t = g_x,t + (df/dx)' lambda_{t+1}, and g_u,t += (df/du)' lambda_{t+1}.
  template <Products P> void sweep(bool ends) {
    for (int t = T - 1; t >= 0; t--) {
      const bool pulls = t < T - 1 || ends;  // with no cost of x_T its costate is zero, and so is what it pulls
      const float* pulled = nullptr;
      if (pulls) {
        for (int r = 0; r < R; r++)
          for (int j = 0; j < nx; j++) w.row(w.cotangents, r)[j] = costate_at(t + 1, r)[j] * p->dynamics_scale[j];
        pulled = backward<P>(w, *p->dynamics, R, 0, &steps[(size_t)t * p->dynamics->count]);
      }
      for (int r = 0; r < R; r++) {
        float *g_t = g_at(t, r), *next = costate_at(t + 1, r), *here = costate_at(t, r);
        for (int j = 0; j < nx; j++) here[j] = g_t[j] + (pulls ? next[j] + pulled[r * w.stride + j] : 0.f);
        for (int j = nx; pulls && j < nz; j++) g_t[j] += pulled[r * w.stride + j];
      }
    }
  }

  // Stops rows whose gradient is not finite (nor its square, which Adam holds), and sends them back to the last v that had one;
  // and stops those whose projected gradient u - clip(u - g) is small once the schedules have ended. It is taken in u for tanh
  // too, whose gradient in v vanishes at either limit. Returns whether a row went back.
  bool judge(bool settled) {
    bool went_back = false;
    norms.assign(R, 0);
    for (int r = 0; r < R; r++) {
      double square = 0, square_u = 0, projected = 0;
      for (int t = 0; t < T; t++)
        for (int j = 0; j < nu; j++) {
          const size_t at = ((size_t)r * T + t) * nu + j;
          const float u = z_at(t, r)[nx + j], slope = g_at(t, r)[nx + j];
          const double inside = p->low ? u - clip(r, j, u - slope) : slope;
          square += (double)grad[at] * grad[at];
          square_u += (double)slope * slope;
          projected += inside * inside;
        }
      const bool finite = std::isfinite((float)square_u);
      norms[r] = std::sqrt(square);
      if (!active[r]) continue;
      const auto here = v.begin() + (size_t)r * T * nu, kept = good.begin() + (size_t)r * T * nu;
      finite ? std::copy_n(here, T * nu, kept) : std::copy_n(kept, T * nu, here);
      went_back |= !finite;
      diverged[r] = !finite;
      converged[r] = finite && settled && p->tolerance > 0 && std::sqrt(projected) < p->tolerance;
      active[r] = !diverged[r] && !converged[r];
    }
    return went_back;
  }

  // Adam (Kingma and Ba 2015, algorithm 1) for the active rows, each with its own count of steps; then projection.
  void step(float step_size) {
    const double b1 = p->adam[0], b2 = p->adam[1];
    for (int r = 0; r < R; r++) {
      if (!active[r]) continue;
      count[r] += 1, taken[r] += 1;
      const float scale = (float)std::min(1.0, p->clip / (norms[r] + 1e-6));
      const float c1 = (float)(1 / (1 - std::pow(b1, (double)count[r]))), c2 = (float)(1 / (1 - std::pow(b2, (double)count[r])));
      const float w1 = (float)(1 - b1), w2 = (float)(1 - b2), keep = (float)b2, eps = (float)p->adam[2];
      for (int t = 0; t < T; t++)
        for (int j = 0; j < nu; j++) {
          const size_t at = ((size_t)r * T + t) * nu + j;
          const float slope = scale * grad[at];
          m[at] += w1 * (slope - m[at]);
          s[at] = keep * s[at] + w2 * slope * slope;
          v[at] = project(r, j, v[at] - step_size * (m[at] * c1) / (std::sqrt(s[at] * c2) + eps));
        }
    }
  }

  float total(int r) const {
    float sum = 0;
    for (int t = 0; t < T; t++) sum += cost[t * R + r];
    return sum + last_cost[r] + change[r];
  }

  void report() {
    const size_t offset = (size_t)first * T * nu;
    std::copy(v.begin(), v.end(), p->v + offset);
    std::copy(m.begin(), m.end(), p->m + offset);
    std::copy(s.begin(), s.end(), p->s + offset);
    for (int r = 0; r < R; r++) {
      const size_t row = first + r;
      p->count[row] = count[r], p->taken[row] = taken[r];
      p->active[row] = active[r], p->diverged[row] = diverged[r], p->converged[row] = converged[r];
      p->terminal_cost[row] = last_cost[r], p->change_cost[row] = change[r];
      for (int t = 0; t < T; t++) {
        std::copy_n(z_at(t, r), nx, p->x + (row * (T + 1) + t) * nx);
        std::copy_n(g_at(t, r) + nx, nu, control_of(p->grad_u, t, r));
        if (p->score) std::copy_n(score + ((size_t)t * R + r) * nz, nz, p->score_value + (row * T + t) * nz);
        p->running_cost[row * T + t] = cost[t * R + r];
      }
      std::copy_n(last + (size_t)r * nx, nx, p->x + (row * (T + 1) + T) * nx);
      for (int t = 0; t <= T; t++) std::copy_n(costate_at(t, r), nx, p->costate + (row * (T + 1) + t) * nx);
    }
  }

  const Plan* p = nullptr;
  int first = 0, R = 0, T = 0, nx = 0, nu = 0, nz = 0;
  long ldz = 0;
  Workspace w{};
  Clock::time_point mark;                                 // when the last lap ended
  double spent[(int)Stage::count] = {};                   // seconds by stage
  std::vector<Kept> steps, passing;                       // of the dynamics, a step after the other; of the other networks
  float *z, *g, *score;                                   // (x, u), the gradient in them, s(z): a row for each t, r
  float *last, *costate, *difference;                     // x_T [R, nx]; lambda [T + 1, R, nx]
  float *cost, *last_cost, *change;                       // [T, R], [R], [R]
  std::vector<float> v, good, best, m, s, grad, count;    // [R, T, nu]; [R]
  std::vector<float> rank, best_rank;                     // [R]
  std::vector<double> norms;                              // of the gradient, [R]
  std::vector<uint8_t> active, diverged, converged;
  std::vector<int32_t> taken;
};
