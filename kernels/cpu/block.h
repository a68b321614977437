// A block of rows planned from the first iteration to the last: rollout, scores, costs, adjoint, Adam, projection, status.
#pragma once

#include <chrono>
#include <cstdlib>
#include <limits>

#include "plan.h"
#include "rollout.h"

using Clock = std::chrono::steady_clock;
static inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A block of rows, planned by one thread (or by each of several, whose `Workspace` says which columns are theirs).
class Block {
 public:
  // Lays out what a block of up to R rows needs; returns the bytes. `results`: the shared buffers, or null for own ones.
  size_t lay_out(const Plan& plan, int R, char* base, float* results) {
    p = &plan;
    const Network& dynamics = *plan.problem.dynamics;
    const size_t all = (size_t)plan.problem.horizon * R;
    Arena arena{base};
    rows.lay_out(plan.problem, R, arena, results, true);
    nx = rows.nx, nu = rows.nu, nz = rows.nz, T = rows.T, ldz = rows.ldz;
    auto keep = [&](const Layer& L) {
      Kept kept{};
      kept.stride = rows.w.stride;
      if (L.activation != Activation::identity) kept.activation = arena.take<float>((size_t)R * kept.stride);
      if (L.gamma) kept.normal = arena.take<float>((size_t)R * kept.stride), kept.rstd = arena.take<float>(R);
      return kept;
    };
    steps.clear();
    for (int t = 0; t < T; t++)
      for (int l = 0; l < dynamics.count; l++) steps.push_back(keep(dynamics.layers[l]));
    g = arena.take<float>(all * ldz), score = arena.take<float>(all * nz);
    costate = arena.take<float>((size_t)(T + 1) * R * nx);
    return arena.used;
  }

  // Plans the rows first .. first + R - 1 until all iterations are done, all rows have stopped, or `budget` seconds are over.
  void plan(int first_row, int count, int id, int threads, Barrier* barrier, double budget, std::atomic<bool>* out_of_time) {
    rows.begin(first_row, count, id, threads, barrier);
    first = first_row, R = count;
    switch (p->problem.products) {
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
  float* z_at(int t, int r) { return rows.z_at(t, r); }
  float* g_at(int t, int r) { return g + ((size_t)t * R + r) * ldz; }
  float* costate_at(int t, int r) { return costate + ((size_t)t * R + r) * nx; }
  float* control_of(float* array, int t, int r) { return array + ((size_t)(first + r) * T + t) * nu; }  // [rows, T, nu]
  float low(int r, int j) const { return rows.low(r, j); }
  float high(int r, int j) const { return rows.high(r, j); }
  bool bounded() const { return p->problem.low != nullptr; }
  float project(int r, int j, float v) const { return !bounded() || p->tanh_bounds ? v : rows.clip(r, j, v); }

  template <Products P> void iterate(double budget, std::atomic<bool>* out_of_time) {
    TilesInUse tiles;
    const auto start = Clock::now();
    const bool limited = budget < std::numeric_limits<double>::infinity();
    const bool writes = rows.w.id == 0;
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
        rows.w.barrier->wait(rows.w.threads);
        const bool over = out_of_time->load(std::memory_order_relaxed);
        rows.w.barrier->wait(rows.w.threads);
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
          if (active[r]) p->history[(size_t)(first + r) * p->iterations + i] = rows.total(r);
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
    for (int r = 0; r < R; r++) rank[r] = rows.total(r);
    if (!p->problem.score || p->penalty == 0) return;
    const int level = p->level[p->iterations - 1];
    rows.scores<P>(level, [&](int row, const float* out) {
      float square = 0;
      for (int j = 0; j < nz; j++) {
        const float value = out[j] / p->problem.score_sigma[level];
        square += value * value;
      }
      rank[row % R] += 0.5f * p->penalty * square;
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
    const bool ends = p->problem.terminal.present;
    rows.states<P>(ends || complete ? T : T - 1, steps.data(), p->problem.dynamics->count);
    done(Stage::rollout);
    std::fill_n(g, (size_t)T * R * ldz, 0.f);
    // A score without weight is evaluated only for the telemetry of the last pass.
    if (p->problem.score && (p->beta[i] != 0 || complete)) scores<P>(p->level[i], p->beta[i], complete);
    if (p->problem.score) done(Stage::score);
    rows.running<P>(g, values);
    if (ends) rows.terminal<P>(costate_at(T, 0));  // its gradient is the last costate
    if (!ends) std::fill_n(rows.last_cost, R, 0.f), std::fill_n(costate_at(T, 0), (size_t)R * nx, 0.f);
    rows.changes(g);
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

  // g -= beta s(z), s = net / (sigma k)
  template <Products P> void scores(int level, float beta, bool keep) {
    const Problem& problem = p->problem;
    rows.scores<P>(level, [&](int row, const float* out) {
      for (int j = 0; j < nz; j++) {
        const float value = out[j] / problem.score_sigma[level] / problem.score->scale[j];
        g[(size_t)row * ldz + j] -= beta * value;
        if (keep) score[(size_t)row * nz + j] = value;
      }
    });
  }

  // The costates backward in time: lambda_t = g_x,t + (df/dx)' lambda_{t+1}, and g_u,t += (df/du)' lambda_{t+1}.
  template <Products P> void sweep(bool ends) {
    Workspace& w = rows.w;
    for (int t = T - 1; t >= 0; t--) {
      const bool pulls = t < T - 1 || ends;  // with no cost of x_T its costate is zero, and so is what it pulls
      const float* pulled = nullptr;
      if (pulls) {
        const Network& dynamics = *p->problem.dynamics;
        for (int r = 0; r < R; r++)
          for (int j = 0; j < nx; j++) w.row(w.cotangents, r)[j] = costate_at(t + 1, r)[j] * p->problem.dynamics_scale[j];
        pulled = backward<P>(w, dynamics, R, 0, &steps[(size_t)t * dynamics.count]);
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
          const double inside = bounded() ? u - rows.clip(r, j, u - slope) : slope;
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

  void report() {
    const size_t offset = (size_t)first * T * nu;
    std::copy(v.begin(), v.end(), p->v + offset);
    std::copy(m.begin(), m.end(), p->m + offset);
    std::copy(s.begin(), s.end(), p->s + offset);
    for (int r = 0; r < R; r++) {
      const size_t row = first + r;
      p->count[row] = count[r], p->taken[row] = taken[r];
      p->active[row] = active[r], p->diverged[row] = diverged[r], p->converged[row] = converged[r];
      p->terminal_cost[row] = rows.last_cost[r], p->change_cost[row] = rows.change[r];
      for (int t = 0; t < T; t++) {
        std::copy_n(z_at(t, r), nx, p->x + (row * (T + 1) + t) * nx);
        std::copy_n(g_at(t, r) + nx, nu, control_of(p->grad_u, t, r));
        if (p->problem.score) std::copy_n(score + ((size_t)t * R + r) * nz, nz, p->score_value + (row * T + t) * nz);
        p->running_cost[row * T + t] = rows.cost[t * R + r];
      }
      std::copy_n(rows.last + (size_t)r * nx, nx, p->x + (row * (T + 1) + T) * nx);
      for (int t = 0; t <= T; t++) std::copy_n(costate_at(t, r), nx, p->costate + (row * (T + 1) + t) * nx);
    }
  }

  const Plan* p = nullptr;
  Rollout rows;
  int first = 0, R = 0, T = 0, nx = 0, nu = 0, nz = 0;  // as in `rows`
  long ldz = 0;
  Clock::time_point mark;                               // when the last lap ended
  double spent[(int)Stage::count] = {};                 // seconds by stage
  std::vector<Kept> steps;                              // of the dynamics, a step after the other
  float *g, *score, *costate;                           // the gradient in z, s(z): a row for each t, r; lambda [T + 1, R, nx]
  std::vector<float> v, good, best, m, s, grad, count;  // [R, T, nu]; [R]
  std::vector<float> rank, best_rank;                   // [R]
  std::vector<double> norms;                            // of the gradient, [R]
  std::vector<uint8_t> active, diverged, converged;
  std::vector<int32_t> taken;
};
