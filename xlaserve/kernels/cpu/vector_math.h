// Elementwise arithmetic as plain loops that compilers turn into vectors: no branches, no calls. Included inside a namespace of its
// instruction set.

namespace {

// Largest number whose two halves, 256 * high + low, are both int8: 256 * 127 + 127.
constexpr float kWide = 32639.0f;

inline float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Rounds to nearest, ties to even; NaN stays one.
inline uint16_t ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value == value ? rounded : (bits >> 16) | 0x40);
}

// To nearest, ties to even, for values within +-2^22.
inline float Round(float x) { return (x + 12582912.0f) - 12582912.0f; }

// e^x within 2 units in the last place: 2^n times a polynomial (Cephes' expf), saturating where float32 does.
inline float Exp(float x) {
  x = x < -87.33f ? -87.33f : x;
  x = x > 88.37f ? 88.37f : x;
  const float n = Round(x * 1.44269504088896341f);
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

inline float Tanh(float x) {
  const float e = Exp(-2.0f * std::fabs(x));
  return std::copysign((1.0f - e) / (1.0f + e), x);
}

// Abramowitz and Stegun 7.1.26: within 1.5e-7.
inline float Erf(float x) {
  const float a = std::fabs(x);
  const float t = 1.0f / (1.0f + 0.3275911f * a);
  const float p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  return std::copysign(1.0f - p * Exp(-a * a), x);
}

// y = activation(y) * up
inline void Activate(Activation activation, float* __restrict y, const float* __restrict up, int64_t count) {
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kSilu:
      for (int64_t i = 0; i < count; ++i) y[i] = y[i] / (1.0f + Exp(-y[i])) * up[i];
      return;
    case Activation::kGeluTanh:
      for (int64_t i = 0; i < count; ++i) {
        const float x = y[i];
        y[i] = 0.5f * x * (1.0f + Tanh(0.7978845608028654f * (x + 0.044715f * x * x * x))) * up[i];
      }
      return;
    case Activation::kGelu:
      for (int64_t i = 0; i < count; ++i) y[i] = 0.5f * y[i] * (1.0f + Erf(y[i] * 0.7071067811865476f)) * up[i];
      return;
  }
}

// Calls body(read), where read(i) gives element i of `values` as float32.
template <typename Body>
inline void Reading(bool bf16, const void* values, const Body& body) {
  if (bf16) {
    body([p = static_cast<const uint16_t*>(values)](int64_t i) { return FromBf16(p[i]); });
  } else {
    body([p = static_cast<const float*>(values)](int64_t i) { return p[i]; });
  }
}

// y += values
inline void AddTo(float* __restrict y, bool bf16, const void* values, int64_t at, int64_t count) {
  Reading(bf16, values, [&](auto read) {
    for (int64_t i = 0; i < count; ++i) y[i] += read(at + i);
  });
}

inline void Store(bool bf16, void* to, int64_t at, const float* __restrict y, int64_t count) {
  if (bf16) {
    uint16_t* const p = static_cast<uint16_t*>(to) + at;
    for (int64_t i = 0; i < count; ++i) p[i] = ToBf16(y[i]);
  } else {
    std::copy_n(y, count, static_cast<float*>(to) + at);
  }
}

// A row of x as float32, normalized if there is a norm. The sum of squares has 16 partial sums, whatever the vectors' length.
inline void NormalizedRow(const LinearArgs& a, int64_t i, float* __restrict row) {
  const int64_t at = a.row(i) * a.inputs;
  Reading(a.bf16, a.x, [&](auto read) {
    for (int64_t k = 0; k < a.inputs; ++k) row[k] = read(at + k);
  });
  if (a.norm == nullptr) return;
  float squares[16] = {};
  int64_t k = 0;
  for (; k + 16 <= a.inputs; k += 16) {
    for (int lane = 0; lane < 16; ++lane) squares[lane] += row[k + lane] * row[k + lane];
  }
  for (; k < a.inputs; ++k) squares[k % 16] += row[k] * row[k];
  for (int some = 8; some > 0; some /= 2) {
    for (int lane = 0; lane < some; ++lane) squares[lane] += squares[lane + some];
  }
  const float factor = 1.0f / std::sqrt(squares[0] / static_cast<float>(a.inputs) + a.eps);
  const float offset = a.unit_offset ? 1.0f : 0.0f;
  // Without the offset the normalized row is rounded to the model's dtype before the weight multiplies it, as the reference does.
  const bool rounds = a.bf16 && !a.unit_offset;
  Reading(a.bf16, a.norm, [&](auto weight) {
    if (rounds) {
      for (int64_t j = 0; j < a.inputs; ++j) row[j] = FromBf16(ToBf16(row[j] * factor)) * weight(j);
    } else {
      for (int64_t j = 0; j < a.inputs; ++j) row[j] = row[j] * factor * (weight(j) + offset);
    }
  });
}

// Largest magnitude of a row, at least 2^-100; NaN where the row has one.
inline float Peak(const float* __restrict row, int64_t count) {
  float peaks[16], wrong[16];
  std::fill_n(peaks, 16, 0x1p-100f);
  std::fill_n(wrong, 16, 0.0f);
  const auto add = [&](int lane, float value) {
    const float size = std::fabs(value);
    peaks[lane] = size > peaks[lane] ? size : peaks[lane];
    wrong[lane] += value - value;
  };
  int64_t k = 0;
  for (; k + 16 <= count; k += 16) {
    for (int lane = 0; lane < 16; ++lane) add(lane, row[k + lane]);
  }
  for (; k < count; ++k) add(0, row[k]);
  for (int lane = 1; lane < 16; ++lane) {
    peaks[0] = std::max(peaks[0], peaks[lane]);
    wrong[0] += wrong[lane];
  }
  return peaks[0] + wrong[0];
}

// A row as 16-bit numbers, the two bytes of each apart and plus 128: 256 * high + low. Returns what multiplies them back.
inline float Quantize(const float* __restrict row, int64_t count, uint8_t* __restrict high, uint8_t* __restrict low) {
  const float peak = Peak(row, count);
  const float inverse = kWide / peak;
  for (int64_t i = 0; i < count; ++i) {
    // Not `Round`: compilers may make one rounding of the product and the sum in it, and one step of difference.
    const int32_t q = static_cast<int32_t>(__builtin_rintf(row[i] * inverse));
    const int32_t above = (q + 128) >> 8;
    high[i] = static_cast<uint8_t>(above + 128);
    low[i] = static_cast<uint8_t>(q - above * 256 + 128);
  }
  return peak * (1.0f / kWide);
}

}  // namespace
