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
  // As integers, the magnitudes of floats are in the same order, and NaN is above all of them.
  int32_t peak = std::bit_cast<int32_t>(0x1p-100f);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t size = std::bit_cast<int32_t>(row[i]) & 0x7fffffff;
    peak = size > peak ? size : peak;
  }
  return std::bit_cast<float>(peak);
}

// A row as 16-bit numbers, the two bytes of each apart: 256 * high + low. Returns what multiplies them back; `sums` gets those of the bytes.
inline float Quantize(const float* __restrict row, int64_t count, int8_t* __restrict high, int8_t* __restrict low, int32_t* sums) {
  const float peak = Peak(row, count);
  const float inverse = kWide / peak;
  int32_t high_sum = 0, low_sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t q = static_cast<int32_t>(__builtin_rintf(row[i] * inverse));
    const int32_t above = (q + 128) >> 8, below = q - above * 256;
    high[i] = static_cast<int8_t>(above);
    low[i] = static_cast<int8_t>(below);
    high_sum += above;
    low_sum += below;
  }
  sums[0] = high_sum;
  sums[1] = low_sum;
  return peak * (1.0f / kWide);
}

}  // namespace
