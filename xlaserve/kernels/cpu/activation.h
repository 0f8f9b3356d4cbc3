// The activations of gated layers, a vector at a time. Included inside a namespace of its instruction set, after "simd.h".

namespace {

// x / (1 + e^-x). Where e^-x is more than the largest that `Exp` takes, the result is less than float32 adds to anything.
inline Floats Silu(Floats x) { return x / (Set(1.0f) + Exp(Min(Zero() - x, Set(88.0f)))); }

inline Floats GeluTanh(Floats x) {
  const Floats inner = Set(0.7978845608028654f) * MultiplyAdd(Set(0.044715f) * x * x, x, x);
  return Set(0.5f) * x * (Set(1.0f) + Tanh(inner));
}

// erf by Abramowitz and Stegun 7.1.26: within 1.5e-7.
inline Floats Gelu(Floats x) {
  const Floats scaled = x * Set(0.7071067811865476f), a = Max(scaled, Zero() - scaled);
  const Floats t = Set(1.0f) / MultiplyAdd(Set(0.3275911f), a, Set(1.0f));
  Floats p = MultiplyAdd(Set(1.061405429f), t, Set(-1.453152027f));
  p = MultiplyAdd(p, t, Set(1.421413741f));
  p = MultiplyAdd(p, t, Set(-0.284496736f));
  p = MultiplyAdd(p, t, Set(0.254829592f)) * t;
  const Floats erf = Set(1.0f) - p * Exp(Zero() - a * a);
  return Set(0.5f) * x * (Set(1.0f) + Select(Less(x, Zero()), Zero() - erf, erf));
}

template <typename Function>
inline void ActivateWith(const Function& function, float* y, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + Floats::kLanes <= count; i += Floats::kLanes) Store(y + i, function(Load(y + i)) * Load(up + i));
  const int rest = static_cast<int>(count - i);
  if (rest > 0) StoreFirst(y + i, function(LoadFirst(y + i, rest)) * LoadFirst(up + i, rest), rest);
}

// y = activation(y) * up
inline void Activate(Activation activation, float* y, const float* up, int64_t count) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kSilu:
      return ActivateWith(Silu, y, up, count);
    case Activation::kGeluTanh:
      return ActivateWith(GeluTanh, y, up, count);
    case Activation::kGelu:
      return ActivateWith(Gelu, y, up, count);
  }
}

}  // namespace
