// A network's value and input-gradient for a block of rows, with what the gradient needs kept on the way where it is asked for.
//
// One layer is  y = act(norm(c * (x W + b))) [+ x], c a row of the table (or + c); see `Layer` in ../network.py. It is a
// product followed by one pass over the rows that does all the rest and writes the operand of the next product.
//
// Many threads, one block. Each thread computes some of the panels of a product, all meet at a barrier, and then every thread
// does the pass over all rows for itself: with few rows that is less work than a second barrier. So only the products' results
// are shared, and in two buffers by turns: a thread that is ahead writes the other one, and cannot be two products ahead,
// because of the barrier between.
//
//        thread 0:  panels 0..2 | barrier | rows, all | panels 0..2 | barrier | ...
//        thread 1:  panels 3..5 |         | rows, all | panels 3..5 |         | ...
#pragma once

#include "activations.h"
#include "products.h"
#include "threads.h"

constexpr float NORM_EPS = 1e-5f;

enum class Condition : int32_t { none, multiply, add };

struct Layer {
  int32_t inputs, width;
  Activation activation;
  Condition condition;
  int32_t residual, reserved;
  Panels weight, transposed;         // inputs -> width, and back
  const float *bias, *gamma, *beta;  // padded with zeros to whole 64; gamma and beta null without a norm
};

// Layers, the table of conditioning vectors (`table_stride` floats a level), and the normaliser of the inputs.
struct Network {
  const Layer* layers;
  int32_t count, table_stride;
  const float *table, *shift, *scale;

  int inputs() const { return layers[0].inputs; }
  int outputs() const { return layers[count - 1].width; }
};

// What one layer keeps: the activation's output or input, the normalised row and 1/sqrt(variance + eps). Without a gradient
// the first is null, and one row serves all to be normalised in: `stride`, floats between rows, is 0.
struct Kept {
  float *activation, *normal, *rstd;
  long stride;
};

// Scratch of one thread; rows are `stride` floats apart.
struct Workspace {
  int id, threads;
  Barrier* barrier;
  long stride;
  float* results[2];  // of products, shared between threads
  int turn;
  float *values, *cotangents;  // rows on the way forward, and back
  uint16_t* halves;            // the operand in bfloat16, `plane` elements a plane
  long plane;

  float* row(float* base, int m) const { return base + m * stride; }
};

// Columns that a pass over a row of `width` must write: what the next product reads, and whole vectors.
template <Products P> static inline int written(int width) { return round_up(width, P == Products::fp32 ? LANES : 32); }

template <Products P> static float* multiply(Workspace& w, const float* rows, int M, const Panels& B, int K) {
  w.turn ^= 1;
  float* out = w.results[w.turn];
  product<P>({rows, w.halves, w.stride, w.plane}, M, B, K, out, w.stride, w.id, w.threads);
  w.barrier->wait(w.threads);
  return out;
}

// Sums over a row in four chains; `term(j)` is the vector at column j, zero behind the width.
template <class Term> static inline float row_sum(int width, Term&& term) {
  vfloat s[4] = {};
  int j = 0;
  for (; j + 4 * LANES <= width; j += 4 * LANES)
    for (int q = 0; q < 4; q++) s[q] += term(j + q * LANES);
  for (; j < width; j += LANES) s[0] += first_lanes(term(j), width - j);
  return sum((s[0] + s[1]) + (s[2] + s[3]));
}

// After a layer's product: everything up to the next one. `x` are the layer's inputs, `out` its outputs.
template <Products P, Activation A>
static void finish_forward(Workspace& w, const Layer& L, float* product, const float* x, float* out, int M, const float* condition,
                           const Kept& kept) {
  const int N = L.width, columns = written<P>(N);
  const float inverse = 1.f / N;
  const bool times = L.condition == Condition::multiply, plus = L.condition == Condition::add;
  for (int m = 0; m < M; m++) {
    const float *p = w.row(product, m), *skip = L.residual ? x + m * w.stride : nullptr;
    float *y = w.row(out, m), *a = A == Activation::identity || !kept.activation ? nullptr : w.row(kept.activation, m);
    float* n = L.gamma ? kept.normal + m * kept.stride : nullptr;
    uint16_t* h = w.halves + m * w.stride;
    auto before = [&](int j) {
      vfloat v = load(p + j) + load(L.bias + j);
      if (times) v *= load(condition + j);
      if (plus) v += load(condition + j);
      return v;
    };
    auto after = [&](int j, vfloat v) {
      vfloat o = activate<A>(v);
      if (a) store(a + j, from_output(A) ? o : v);
      if (skip) o += load(skip + j);
      if (y != a) store(y + j, o);
      store_halves<P>(h + j, w.plane, o);
    };
    if (!n) {
      for (int j = 0; j < columns; j += LANES) after(j, before(j));
      continue;
    }
    for (int j = 0; j < columns; j += LANES) store(n + j, before(j));
    const vfloat mean = splat(row_sum(N, [&](int j) { return load(n + j); }) * inverse);
    const float variance = row_sum(N, [&](int j) { vfloat d = load(n + j) - mean; return d * d; }) * inverse;
    const vfloat r = splat(kept.rstd[m] = 1.f / std::sqrt(variance + NORM_EPS));
    for (int j = 0; j < columns; j += LANES) {
      vfloat v = (load(n + j) - mean) * r;
      store(n + j, v);
      after(j, v * load(L.gamma + j) + load(L.beta + j));
    }
  }
}

// Outputs `[M, outputs]`, `w.stride` apart, of rows z that are `ldz` apart. `kept` has an entry a layer.
template <Products P>
static const float* forward(Workspace& w, const Network& net, const float* z, long ldz, int M, int level, const Kept* kept) {
  const int inputs = net.inputs(), columns = written<P>(inputs);
  for (int m = 0; m < M; m++) {
    float* to = w.row(w.values, m);
    for (int j = 0; j < inputs; j++) to[j] = (z[m * ldz + j] - net.shift[j]) / net.scale[j];
    for (int j = inputs; j < columns; j++) to[j] = 0;
    for (int j = 0; j < columns; j += LANES) store_halves<P>(w.halves + m * w.stride + j, w.plane, load(to + j));
  }
  const float* x = w.values;
  for (int l = 0; l < net.count; l++) {
    const Layer& L = net.layers[l];
    float* p = multiply<P>(w, x, M, L.weight, L.inputs);
    // The output that the activation keeps anyway serves the next product; any other overwrites the scratch, which this
    // layer's product has read by now.
    float* out = kept[l].activation && from_output(L.activation) && !L.residual ? kept[l].activation : w.values;
    const float* condition = net.table ? net.table + (long)level * net.table_stride : nullptr;
    with_activation(L.activation, [&](auto a) {
      finish_forward<P, decltype(a)::value>(w, L, p, x, out, M, condition, kept[l]);
    });
    x = out;
  }
  return x;
}

// Before a layer's transposed product: the cotangent of its output pulled back to that of its product.
template <Products P, Activation A>
static void start_backward(Workspace& w, const Layer& L, const float* cotangent, int M, const float* condition, const Kept& kept) {
  const int N = L.width, columns = written<P>(N);
  const float inverse = 1.f / N;
  const float* times = L.condition == Condition::multiply ? condition : nullptr;
  for (int m = 0; m < M; m++) {
    const float *g = cotangent + m * w.stride, *a = A == Activation::identity ? nullptr : w.row(kept.activation, m);
    const float* n = L.gamma ? w.row(kept.normal, m) : nullptr;
    float* q = w.row(w.values, m);
    uint16_t* h = w.halves + m * w.stride;
    auto through = [&](int j) { return A == Activation::identity ? load(g + j) : load(g + j) * slope<A>(load(a + j)); };
    auto give = [&](int j, vfloat v) {
      if (times) v *= load(times + j);
      if (P == Products::fp32) store(q + j, v);
      store_halves<P>(h + j, w.plane, v);
    };
    if (!n) {
      for (int j = 0; j < columns; j += LANES) give(j, through(j));
      continue;
    }
    // d = gamma * g': (d - mean(d) - n mean(d n)) / sqrt(variance + eps)
    for (int j = 0; j < columns; j += LANES) store(q + j, through(j) * load(L.gamma + j));
    const vfloat a1 = splat(row_sum(N, [&](int j) { return load(q + j); }) * inverse);
    const vfloat a2 = splat(row_sum(N, [&](int j) { return load(q + j) * load(n + j); }) * inverse);
    const vfloat r = splat(kept.rstd[m]);
    for (int j = 0; j < columns; j += LANES) give(j, (load(q + j) - a1 - load(n + j) * a2) * r);
  }
}

// Pulls the cotangents in `w.cotangents` ([M, outputs]) back to the rows z: `[M, inputs]`, `w.stride` apart.
template <Products P> static const float* backward(Workspace& w, const Network& net, int M, int level, const Kept* kept) {
  const float* g = w.cotangents;
  const int outputs = net.outputs(), columns = written<P>(outputs);
  for (int m = 0; m < M; m++)
    for (int j = outputs; j < columns; j++) w.row(w.cotangents, m)[j] = 0;
  for (int l = net.count - 1; l >= 0; l--) {
    const Layer& L = net.layers[l];
    const float* condition = net.table ? net.table + (long)level * net.table_stride : nullptr;
    with_activation(L.activation, [&](auto a) { start_backward<P, decltype(a)::value>(w, L, g, M, condition, kept[l]); });
    const int through = L.residual ? written<P>(L.inputs) : 0;
    if (g != w.cotangents)  // the result of a product: a thread that is ahead writes over it once all have met at this one's
      for (int m = 0; m < M; m++) std::copy_n(g + m * w.stride, through, w.row(w.cotangents, m));
    const float* pulled = multiply<P>(w, w.values, M, L.transposed, L.width);
    if (L.residual) {
      for (int m = 0; m < M; m++)
        for (int j = 0; j < through; j += LANES)
          store(w.row(w.cotangents, m) + j, load(w.row(w.cotangents, m) + j) + load(pulled + m * w.stride + j));
      pulled = w.cotangents;
    }
    g = pulled;
  }
  for (int m = 0; m < M; m++)
    for (int j = 0; j < net.inputs(); j++) w.row(w.cotangents, m)[j] = g[m * w.stride + j] / net.scale[j];
  return w.cotangents;
}
