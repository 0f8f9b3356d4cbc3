// What one step of a dot product is, for each type of weights, and how the lanes of a tile are added up. Included inside a namespace of
// its instruction set: with AVX-512 vectors have 16 lanes, else 8; with XLASERVE_VNNI int8 and bfloat16 have instructions of their own.

namespace {

#if defined(__AVX512F__)

constexpr int kLanes = 16, kRows = 6, kColumns = 4;
using F = __m512;
using I = __m512i;

inline F AddF(F a, F b) { return _mm512_add_ps(a, b); }
inline I AddI(I a, I b) { return _mm512_add_epi32(a, b); }
inline F AsF(I a) { return _mm512_castsi512_ps(a); }
inline I AsI(F a) { return _mm512_castps_si512(a); }
inline F UnpackLow(F a, F b) { return _mm512_unpacklo_ps(a, b); }
inline F UnpackHigh(F a, F b) { return _mm512_unpackhi_ps(a, b); }
inline F UnpackLow2(F a, F b) { return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); }
inline F UnpackHigh2(F a, F b) { return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))); }
inline F ZeroF() { return _mm512_setzero_ps(); }
inline F Expand(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline F LoadF(const float* p) { return _mm512_loadu_ps(p); }
inline F MultiplyAddF(F acc, F a, F b) { return _mm512_fmadd_ps(a, b, acc); }

// Adds the four 128-bit pieces of each of four vectors; lane i of piece j of the result is of vector j.
template <typename Add>
inline F AddPieces(const F* v, Add add) {
  const F low = add(_mm512_shuffle_f32x4(v[0], v[1], 0x88), _mm512_shuffle_f32x4(v[0], v[1], 0xdd));
  const F high = add(_mm512_shuffle_f32x4(v[2], v[3], 0x88), _mm512_shuffle_f32x4(v[2], v[3], 0xdd));
  return add(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}
inline void StoreF(float* p, F a) { _mm512_storeu_ps(p, a); }

#else

constexpr int kLanes = 8, kRows = 4, kColumns = 2;
using F = __m256;
using I = __m256i;

inline F AddF(F a, F b) { return _mm256_add_ps(a, b); }
inline I AddI(I a, I b) { return _mm256_add_epi32(a, b); }
inline F AsF(I a) { return _mm256_castsi256_ps(a); }
inline I AsI(F a) { return _mm256_castps_si256(a); }
inline F UnpackLow(F a, F b) { return _mm256_unpacklo_ps(a, b); }
inline F UnpackHigh(F a, F b) { return _mm256_unpackhi_ps(a, b); }
inline F UnpackLow2(F a, F b) { return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))); }
inline F UnpackHigh2(F a, F b) { return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b))); }
inline F ZeroF() { return _mm256_setzero_ps(); }
inline F Expand(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline F LoadF(const float* p) { return _mm256_loadu_ps(p); }
inline F MultiplyAddF(F acc, F a, F b) { return _mm256_fmadd_ps(a, b, acc); }
template <typename Add>
inline F AddPieces(const F* v, Add add) {
  return add(_mm256_permute2f128_ps(v[0], v[1], 0x20), _mm256_permute2f128_ps(v[0], v[1], 0x31));
}
inline void StoreF(float* p, F a) { _mm256_storeu_ps(p, a); }

#endif

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
  static constexpr int kLanes = ::xlaserve::XLASERVE_ISA::kLanes, kRows = ::xlaserve::XLASERVE_ISA::kRows;
  static constexpr int kColumns = ::xlaserve::XLASERVE_ISA::kColumns;
  static constexpr bool kQuantizes = false;
  static F Zero() { return ZeroF(); }
  template <int Count>
  static void AddLanes(const F* acc, float* out) {
    AddLanesOf<Count>(acc, out, AddF);
  }
  template <typename V>
  static F AddWeights(F sums, V) {
    return sums;
  }
  static float* Scale(const LinearArgs&, int64_t, int64_t, int64_t, int64_t, float* dots, int64_t, const float*) { return dots; }
};

struct F32Dot : FloatSums {
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
  using X = uint16_t;
  using W = uint16_t;
#if defined(XLASERVE_VNNI)
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
// with weights that are in a register costs little. Lines are kept plus 128, as the instruction wants one operand without sign; that
// adds 128 times the weights' sum to each dot product. Without the instruction, x and weights are widened to int16.
struct S8Dot {
  using Sum = int32_t;
  using Acc = I;
  using X = uint8_t;
  using W = int8_t;
  static constexpr int kLanes = ::xlaserve::XLASERVE_ISA::kLanes, kRows = ::xlaserve::XLASERVE_ISA::kRows;
  static constexpr int kColumns = ::xlaserve::XLASERVE_ISA::kColumns;
  static constexpr bool kQuantizes = true;
  static I Zero() { return AsI(ZeroF()); }
#if defined(XLASERVE_VNNI)
  using XV = I;
  using WV = I;
  static constexpr int kStep = 64;
  static I LoadX(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static I LoadW(const int8_t* p) { return _mm512_loadu_si512(p); }
  static I MultiplyAdd(I acc, I x, I w) { return _mm512_dpbusd_epi32(acc, x, w); }
  static I AddWeights(I sums, I w) { return _mm512_dpbusd_epi32(sums, _mm512_set1_epi8(1), w); }
#elif defined(__AVX512F__)
  using XV = I;
  using WV = I;
  static constexpr int kStep = 32;
  static I LoadX(const uint8_t* p) { return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static I LoadW(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static I MultiplyAdd(I acc, I x, I w) { return AddI(acc, _mm512_madd_epi16(x, w)); }
  static I AddWeights(I sums, I w) { return AddI(sums, _mm512_madd_epi16(_mm512_set1_epi16(1), w)); }
#else
  using XV = I;
  using WV = I;
  static constexpr int kStep = 16;
  static I LoadX(const uint8_t* p) { return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static I LoadW(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
  static I MultiplyAdd(I acc, I x, I w) { return AddI(acc, _mm256_madd_epi16(x, w)); }
  static I AddWeights(I sums, I w) { return AddI(sums, _mm256_madd_epi16(_mm256_set1_epi16(1), w)); }
#endif
  static I LoadX(const uint8_t* p, int64_t count) {
    return LoadSome<I, kStep>(p, count, [](const uint8_t* some) { return LoadX(some); });
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
  static void Prepare(const LinearArgs& a, int64_t i, uint8_t* row) {
    static thread_local std::vector<float> wide;
    wide.resize(a.inputs);
    NormalizedRow(a, i, wide.data());
    if (a.bf16) {
      for (float& value : wide) value = FromBf16(ToBf16(value));
    }
    a.scale_scratch[i] = Quantize(wide.data(), a.inputs, row, row + a.padded_inputs());
  }
  static float* Scale(const LinearArgs& a, int64_t row, int64_t first, int64_t count, int64_t halves, int32_t* dots, int64_t width,
                      const int32_t* sums) {
    float* const y = reinterpret_cast<float*>(dots);
    const float x_scale = a.scale_scratch[row];
    for (int64_t half = 0; half < halves; ++half) {
      const float* const scale = a.scale + half * (a.outputs / halves) + first;
      for (int64_t n = half * count, i = 0; i < count; ++n, ++i) {
        const float high = static_cast<float>(dots[n] - 128 * sums[n]), low = static_cast<float>(dots[width + n] - 128 * sums[n]);
        y[n] = (high * 256.0f + low) * (x_scale * scale[i]);
      }
    }
    return y;
  }
};

}  // namespace
