// What one step of a dot product is, for each type of weights, and how the lanes of a tile are added up. Included inside a namespace of
// its instruction set.

namespace {

// The sums over the lanes of `Count` vectors, at most kLanes of them: a transposition that adds where it would only move. The order of
// additions within a vector does not depend on its place.
template <int Count, typename Add>
inline void AddLanesOf(const F* acc, float* out, Add add) {
  if constexpr (Count > kLanes) {
    AddLanesOf<kLanes>(acc, out, add);
    return AddLanesOf<Count - kLanes>(acc + kLanes, out + kLanes, add);
  } else {
  F quads[kLanes / 4];
#pragma GCC unroll 4
  for (int q = 0; q < kLanes / 4; ++q) {
    const auto at = [&](int i) { return 4 * q + i < Count ? acc[4 * q + i] : ZeroF(); };
    const F first = add(UnpackLow(at(0), at(1)), UnpackHigh(at(0), at(1)));
    const F second = add(UnpackLow(at(2), at(3)), UnpackHigh(at(2), at(3)));
    quads[q] = add(UnpackLow2(first, second), UnpackHigh2(first, second));
  }
  const F all = AddPieces(quads, add);
  if constexpr (Count == kLanes) {
    StoreF(out, all);
  } else {
    alignas(64) float lanes[kLanes];
    StoreF(lanes, all);
    std::copy_n(lanes, Count, out);
  }
  }
}

// Loads the first `count` elements, and zeros.
template <typename Vector, int kElements, typename T, typename Load>
inline Vector LoadSome(const T* p, int64_t count, Load load) {
  alignas(64) T some[kElements] = {};
  std::copy_n(p, count, some);
  return load(some);
}

struct FloatSums {
  using Sum = float;
  using Acc = F;
  static constexpr int kRows = ::xlaserve::XLASERVE_ISA::kRows;
  static constexpr int kColumns = ::xlaserve::XLASERVE_ISA::kColumns;
  static constexpr bool kQuantizes = false;
  static F Zero() { return ZeroF(); }
  template <int Count>
  static void AddLanes(const F* acc, float* out) {
    AddLanesOf<Count>(acc, out, AddF);
  }
  static float* Scale(const LinearArgs&, int64_t, int64_t, int64_t, int64_t, float* dots, int64_t) { return dots; }
};

struct F32Dot : FloatSums {
  using Panel = F32Panel;
  using X = float;
  using W = float;
  using XV = F;
  using WV = F;
  static constexpr int kStep = kLanes;
  static F LoadX(const float* p) { return LoadF(p); }
  static F LoadX(const float* p, int64_t count) { return LoadSome<F, kStep>(p, count, LoadF); }
  static F LoadW(const float* p) { return LoadF(p); }
  static F LoadW(const float* p, int64_t count) { return LoadSome<F, kStep>(p, count, LoadF); }
  static F MultiplyAdd(F acc, F x, F w) { return MultiplyAddF(acc, x, w); }
  static void Prepare(const LinearArgs& a, int64_t i, float* row) { NormalizedRow(a, i, row); }
};

// bfloat16 weights and activations.
struct Bf16Dot : FloatSums {
  using Panel = Bf16Panel;
  using X = uint16_t;
  using W = uint16_t;
#if defined(XLASERVE_BF16)
  using XV = I;
  using WV = I;
  static constexpr int kStep = 32;
  static I Load(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static F MultiplyAdd(F acc, I x, I w) { return _mm512_dpbf16_ps(acc, (__m512bh)x, (__m512bh)w); }
#else
  using XV = F;
  using WV = F;
  static constexpr int kStep = kLanes;
  static F Load(const uint16_t* p) { return Expand(p); }
  static F MultiplyAdd(F acc, F x, F w) { return MultiplyAddF(acc, x, w); }
#endif
  static XV LoadX(const uint16_t* p) { return Load(p); }
  static XV LoadX(const uint16_t* p, int64_t count) { return LoadSome<XV, kStep>(p, count, Load); }
  static WV LoadW(const uint16_t* p) { return Load(p); }
  static WV LoadW(const uint16_t* p, int64_t count) { return LoadSome<WV, kStep>(p, count, Load); }
  static void Prepare(const LinearArgs& a, int64_t i, uint16_t* row) {
    static thread_local std::vector<float> wide;
    wide.resize(a.inputs);
    NormalizedRow(a, i, wide.data());
    Store(true, row, 0, wide.data(), a.inputs);
  }
};

// int8 weights, and rows of x that are quantized to 16 bits here, as two lines of 8 bits: 8 alone would cost accuracy, and a second product
// with weights that are in a register costs little. The instruction for it wants one operand without sign: weights plus 128, which adds 128
// times the line's sum to each dot product. Without the instruction, both are widened to int16.
struct S8Dot {
  using Panel = S8Panel;
  using Sum = int32_t;
  using Acc = I;
  using X = int8_t;
  using W = int8_t;
  using XV = I;
  using WV = I;
  static constexpr int kRows = 3, kColumns = ::xlaserve::XLASERVE_ISA::kLanes / 2;
  static constexpr bool kQuantizes = true;
  static I Zero() { return AsI(ZeroF()); }
#if defined(XLASERVE_VNNI)
  static constexpr int kStep = 64, kOffset = 128;
  static I LoadX(const int8_t* p) { return _mm512_loadu_si512(p); }
  static I LoadW(const int8_t* p) { return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128)); }
  static I MultiplyAdd(I acc, I x, I w) { return MultiplyAdd8(acc, w, x); }
#elif defined(__AVX512F__)
  static constexpr int kStep = 32, kOffset = 0;
  static I LoadX(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static I LoadW(const int8_t* p) { return LoadX(p); }
  static I MultiplyAdd(I acc, I x, I w) { return AddI(acc, _mm512_madd_epi16(x, w)); }
#else
  static constexpr int kStep = 16, kOffset = 0;
  static I LoadX(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static I LoadW(const int8_t* p) { return LoadX(p); }
  static I MultiplyAdd(I acc, I x, I w) { return AddI(acc, _mm256_madd_epi16(x, w)); }
#endif
  static I LoadX(const int8_t* p, int64_t count) {
    return LoadSome<I, kStep>(p, count, [](const int8_t* some) { return LoadX(some); });
  }
  static I LoadW(const int8_t* p, int64_t count) {
    return LoadSome<I, kStep>(p, count, [](const int8_t* some) { return LoadW(some); });
  }
  template <int Count>
  static void AddLanes(const I* acc, int32_t* out) {
    F lanes[Count];
    for (int i = 0; i < Count; ++i) lanes[i] = AsF(acc[i]);
    AddLanesOf<Count>(lanes, reinterpret_cast<float*>(out), [](F a, F b) { return AsF(AddI(AsI(a), AsI(b))); });
  }
  static void Prepare(const LinearArgs& a, int64_t i, int8_t* line) {
    static thread_local std::vector<float> wide;
    wide.resize(a.inputs);
    NormalizedRow(a, i, wide.data());
    if (a.bf16) {
      for (float& value : wide) value = FromBf16(ToBf16(value));
    }
    int8_t* const low = line + a.padded_inputs();
    a.scale_scratch[i] = Quantize(wide.data(), a.inputs, line, low, a.sum_scratch + 2 * i);
    std::fill(line + a.inputs, low, int8_t{0});
    std::fill(low + a.inputs, low + a.padded_inputs(), int8_t{0});
  }
  static float* Scale(const LinearArgs& a, int64_t row, int64_t first, int64_t count, int64_t halves, int32_t* dots, int64_t width) {
    float* const y = reinterpret_cast<float*>(dots);
    const float x_scale = a.scale_scratch[row];
    const int32_t high_offset = kOffset * a.sum_scratch[2 * row], low_offset = kOffset * a.sum_scratch[2 * row + 1];
    for (int64_t half = 0; half < halves; ++half) {
      const float* const scale = a.scale + half * (a.outputs / halves) + first;
      for (int64_t n = half * count, i = 0; i < count; ++n, ++i) {
        const float high = static_cast<float>(dots[n] - high_offset), low = static_cast<float>(dots[width + n] - low_offset);
        y[n] = (high * 256.0f + low) * (x_scale * scale[i]);
      }
    }
    return y;
  }
};

}  // namespace
