// Vectors of an instruction set and what is done with them: with AVX-512 they have 16 lanes, else 8; with XLASERVE_VNNI int8 has instructions of
// its own, with XLASERVE_BF16 bfloat16. Included inside a namespace of its instruction set.

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
inline I LoadI(const char* p) { return _mm512_loadu_si512(p); }
inline I SetI(int32_t value) { return _mm512_set1_epi32(value); }
inline I LowBf16(I a) { return _mm512_slli_epi32(a, 16); }
inline I HighBf16(I a) { return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000))); }
inline void StoreI(void* p, I a) { _mm512_storeu_si512(p, a); }
#if !defined(XLASERVE_VNNI)
inline I EvenBytes(I a) { return _mm512_srai_epi16(_mm512_slli_epi16(a, 8), 8); }
inline I OddBytes(I a) { return _mm512_srai_epi16(a, 8); }
inline I MultiplyPairs(I a, I b) { return _mm512_madd_epi16(a, b); }
#endif

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
inline I LoadI(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline I SetI(int32_t value) { return _mm256_set1_epi32(value); }
inline I LowBf16(I a) { return _mm256_slli_epi32(a, 16); }
inline I HighBf16(I a) { return _mm256_and_si256(a, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000))); }
inline void StoreI(void* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
inline I EvenBytes(I a) { return _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8); }
inline I OddBytes(I a) { return _mm256_srai_epi16(a, 8); }
inline I MultiplyPairs(I a, I b) { return _mm256_madd_epi16(a, b); }

#endif

#if defined(XLASERVE_VNNI)

// Adds the products of four bytes each to 32-bit lanes. Of the intrinsic, gcc copies accumulators back and forth until it runs out of registers.
inline __m512i MultiplyAdd8(__m512i acc, __m512i without_sign, __m512i with_sign) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(without_sign), "v"(with_sign));
  return acc;
}

#endif

}  // namespace
