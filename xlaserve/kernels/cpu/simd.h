// Vectors of float32 as the instruction set has them: 16 lanes with AVX-512, 8 with AVX2. Numbers in memory are float32 or bfloat16.
//
// Included once for each instruction set, inside a namespace of its own, after <immintrin.h>, <cstdint> and "bf16.h".

namespace {

using ::xlaserve::Bf16;

#if defined(__AVX512F__)

struct Floats {
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  __m512 v;
};
using Mask = __mmask16;

inline Floats Zero() { return {_mm512_setzero_ps()}; }
inline Floats Set(float x) { return {_mm512_set1_ps(x)}; }
inline Mask First(int n) { return static_cast<Mask>((1u << n) - 1); }

inline __m512 Widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
inline __m256i Narrow(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const Mask nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc0)));
}

inline Floats Load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats Load(const Bf16* p) { return {Widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline Floats LoadFirst(const float* p, int n) { return {_mm512_maskz_loadu_ps(First(n), p)}; }
inline Floats LoadFirst(const Bf16* p, int n) { return {Widen(_mm256_maskz_loadu_epi16(First(n), p))}; }
inline void Store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
inline void Store(Bf16* p, Floats x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Narrow(x.v)); }
inline void StoreFirst(float* p, Floats x, int n) { _mm512_mask_storeu_ps(p, First(n), x.v); }
inline void StoreFirst(Bf16* p, Floats x, int n) { _mm256_mask_storeu_epi16(p, First(n), Narrow(x.v)); }

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Floats MultiplyAdd(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats Max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats Min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats Round(Floats a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a * 2^n for a whole n in [-126, 127].
inline Floats ScaleByPower(Floats a, Floats n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline Mask Less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
// The lanes whose number is in [low, high).
inline Mask Between(int low, int high) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(low)) & _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(high));
}
// a where the mask is set, else b.
inline Floats Select(Mask m, Floats a, Floats b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }

inline float Sum(Floats x) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float MaxOf(Floats x) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

#else

struct Floats {
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  __m256 v;
};
using Mask = __m256;

inline Floats Zero() { return {_mm256_setzero_ps()}; }
inline Floats Set(float x) { return {_mm256_set1_ps(x)}; }
inline __m256i Lanes() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline __m256i First(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), Lanes()); }

inline __m256 Widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline __m128i Narrow(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i kept = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}

inline Floats Load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Floats Load(const Bf16* p) { return {Widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Floats LoadFirst(const float* p, int n) { return {_mm256_maskload_ps(p, First(n))}; }
inline Floats LoadFirst(const Bf16* p, int n) {
  alignas(16) Bf16 some[8] = {};
  for (int i = 0; i < n; ++i) some[i] = p[i];
  return Load(some);
}
inline void Store(float* p, Floats x) { _mm256_storeu_ps(p, x.v); }
inline void Store(Bf16* p, Floats x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), Narrow(x.v)); }
inline void StoreFirst(float* p, Floats x, int n) { _mm256_maskstore_ps(p, First(n), x.v); }
inline void StoreFirst(Bf16* p, Floats x, int n) {
  alignas(16) Bf16 some[8];
  Store(some, x);
  for (int i = 0; i < n; ++i) p[i] = some[i];
}

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Floats MultiplyAdd(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats Max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Floats Min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Floats Round(Floats a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a * 2^n for a whole n in [-126, 127].
inline Floats ScaleByPower(Floats a, Floats n) {
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(power))};
}
inline Mask Less(Floats a, Floats b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ); }
// The lanes whose number is in [low, high).
inline Mask Between(int low, int high) { return _mm256_castsi256_ps(_mm256_andnot_si256(First(low), First(high))); }
// a where the mask is set, else b.
inline Floats Select(Mask m, Floats a, Floats b) { return {_mm256_blendv_ps(b.v, a.v, m)}; }

inline float Sum(Floats x) {
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float MaxOf(Floats x) {
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

#endif

// e^x for x <= 88, relative error about 1e-7 (polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2]); 0 below -87.3; exactly 1 for 0.
inline Floats Exp(Floats x) {
  const Mask tiny = Less(x, Set(-87.3f));
  const Floats n = Round(Max(x, Set(-87.3f)) * Set(1.44269504f));
  Floats r = MultiplyAdd(n, Set(-0.693145752f), x);
  r = MultiplyAdd(n, Set(-1.42860677e-6f), r);
  Floats p = Set(1.0f / 720);
  p = MultiplyAdd(p, r, Set(1.0f / 120));
  p = MultiplyAdd(p, r, Set(1.0f / 24));
  p = MultiplyAdd(p, r, Set(1.0f / 6));
  p = MultiplyAdd(p, r, Set(0.5f));
  p = MultiplyAdd(p, r, Set(1.0f));
  p = MultiplyAdd(p, r, Set(1.0f));
  return Select(tiny, Zero(), ScaleByPower(p, n));
}

// tanh x = 1 - 2 / (e^2x + 1), absolute error about 1e-7.
inline Floats Tanh(Floats x) {
  const Floats e = Exp(Max(Min(x + x, Set(40.0f)), Set(-40.0f)));
  return Set(1.0f) - Set(2.0f) / (e + Set(1.0f));
}

}  // namespace
