// Activations and their derivatives. All are zero at zero, so that the padding behind a row stays zero through a layer.
#pragma once

#include <type_traits>

#include "simd.h"

// The order is that of `ACTIVATIONS` in pack.py.
enum class Activation : int32_t { identity, relu, elu, silu, gelu, mish, tanh };

// ReLU, ELU and tanh have derivatives that their own output tells; for the others the input is kept.
constexpr bool from_output(Activation a) { return a == Activation::relu || a == Activation::elu || a == Activation::tanh; }

template <Activation A> static inline vfloat activate(vfloat h) {
  const vfloat one = splat(1.f);
  if constexpr (A == Activation::relu) return select(h <= vfloat{}, vfloat{}, h);
  if constexpr (A == Activation::elu) return select(h <= vfloat{}, expm1(h), h);
  if constexpr (A == Activation::silu) return h / (one + exp(-h));
  if constexpr (A == Activation::gelu) return h * splat(0.5f) * (one + erf(h * splat(0.70710678f)));
  if constexpr (A == Activation::mish) {  // tanh(log(1 + e)) = w/(w + 2) with w = e (e + 2); above 20 it is 1
    vfloat e = exp(select(h > splat(20.f), splat(20.f), h)), w = e * (e + splat(2.f));
    return h * w / (w + splat(2.f));
  }
  if constexpr (A == Activation::tanh) return tanh(h);
  return h;
}

// The derivative, from the output where `from_output`, else from the input.
template <Activation A> static inline vfloat slope(vfloat kept) {
  const vfloat one = splat(1.f);
  if constexpr (A == Activation::relu) return select(kept > vfloat{}, one, vfloat{});
  if constexpr (A == Activation::elu) return select(kept > vfloat{}, one, kept + one);
  if constexpr (A == Activation::silu) {
    vfloat s = one / (one + exp(-kept));
    return s * (one + kept * (one - s));
  }
  if constexpr (A == Activation::gelu) {
    vfloat density = splat(0.39894228f) * exp(splat(-0.5f) * kept * kept);
    return splat(0.5f) * (one + erf(kept * splat(0.70710678f))) + kept * density;
  }
  if constexpr (A == Activation::mish) {  // t + x (1 - t^2) sigmoid(x), written so that nothing cancels
    vfloat e = exp(select(kept > splat(20.f), splat(20.f), kept)), w = e * (e + splat(2.f)), d = w + splat(2.f);
    return w / d + kept * splat(4.f) * e * (one + e) / (d * d);
  }
  if constexpr (A == Activation::tanh) return one - kept * kept;
  return one;
}

// Calls `f` with the activation as a type, so that its loops are compiled for that activation alone.
template <class F> static inline void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::identity: return f(std::integral_constant<Activation, Activation::identity>{});
    case Activation::relu: return f(std::integral_constant<Activation, Activation::relu>{});
    case Activation::elu: return f(std::integral_constant<Activation, Activation::elu>{});
    case Activation::silu: return f(std::integral_constant<Activation, Activation::silu>{});
    case Activation::gelu: return f(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::mish: return f(std::integral_constant<Activation, Activation::mish>{});
    case Activation::tanh: return f(std::integral_constant<Activation, Activation::tanh>{});
  }
}
