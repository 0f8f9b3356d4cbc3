// Products of many rows of x with float32 weights, for AVX-512: a panel of weights is transposed, 16 outputs to a vector, and stays in the
// second-level cache while rows of x pass. No lanes have to be added up then, which pays from some dozens of rows on. The order of additions
// is another than that of "linear.h" (one input after the other), so results differ in the last bits from those of few rows; among rows that
// come this way it is always the same. Included inside a namespace of its instruction set.

namespace {

#if defined(__AVX512F__)

constexpr int kWideOutputs = 32, kWideRows = 12;

// 32 rows of weights, or as many as there are and zeros, as [inputs][32].
inline void Pack(const float* weights, int64_t rows, int64_t inputs, float* to) {
  for (int half = 0; half < 2; ++half) {
    for (int64_t k = 0; k < inputs; k += 16) {
      const int64_t count = std::min<int64_t>(16, inputs - k);
      const __mmask16 some = (1u << count) - 1;
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const int64_t row = 16 * half + i;
        r[i] = row < rows ? _mm512_maskz_loadu_epi32(some, weights + row * inputs + k) : _mm512_setzero_si512();
      }
      Transpose(r);
      for (int64_t i = 0; i < count; ++i) _mm512_storeu_si512(to + (k + i) * kWideOutputs + 16 * half, r[i]);
    }
  }
}

// A tile of MR rows and 32 outputs, of which `kept` are stored. The first `lines` lines of the cache from `ahead` on are asked for meanwhile.
template <int MR>
inline void PackedTile(const float* const* x, const float* packed, int64_t inputs, int64_t kept, float* out, int64_t width, const char* ahead,
                       int64_t lines) {
  __m512 acc[2 * MR];
#pragma GCC unroll 32
  for (int i = 0; i < 2 * MR; ++i) acc[i] = _mm512_setzero_ps();
  const auto steps = [&](int64_t from, int64_t to) __attribute__((always_inline)) {
    for (int64_t k = from; k < to; ++k) {
      const __m512 first = _mm512_loadu_ps(packed + k * kWideOutputs), second = _mm512_loadu_ps(packed + k * kWideOutputs + 16);
#pragma GCC unroll 12
      for (int m = 0; m < MR; ++m) {
        const __m512 xv = _mm512_set1_ps(x[m][k]);
        acc[2 * m] = _mm512_fmadd_ps(xv, first, acc[2 * m]);
        acc[2 * m + 1] = _mm512_fmadd_ps(xv, second, acc[2 * m + 1]);
      }
    }
  };
  constexpr int64_t kStride = 8;  // steps between two requests
  int64_t k = 0;
  for (int64_t line = 0; line < lines && k + kStride <= inputs; ++line, k += kStride) {
    __builtin_prefetch(ahead + 64 * line, 0, 2);
    steps(k, k + kStride);
  }
  steps(k, inputs);
  const __mmask16 keep_first = kept >= 16 ? 0xffff : (1u << kept) - 1;
  const __mmask16 keep_second = kept >= 32 ? 0xffff : kept <= 16 ? 0 : (1u << (kept - 16)) - 1;
#pragma GCC unroll 12
  for (int m = 0; m < MR; ++m) {
    _mm512_mask_storeu_ps(out + m * width, keep_first, acc[2 * m]);
    _mm512_mask_storeu_ps(out + m * width + 16, keep_second, acc[2 * m + 1]);
  }
}

template <int MR>
inline void PackedTileOf(int64_t rows, const float* const* x, const float* packed, int64_t inputs, int64_t kept, float* out, int64_t width,
                         const char* ahead, int64_t lines) {
  if constexpr (MR > 1) {
    if (rows < MR) return PackedTileOf<MR - 1>(rows, x, packed, inputs, kept, out, width, ahead, lines);
  }
  PackedTile<MR>(x, packed, inputs, kept, out, width, ahead, lines);
}

// As Product::Columns.
inline void PackedColumns(const float* weights, int64_t count, int64_t inputs, const float* const* x, int64_t rows, int64_t width, float* out) {
  static thread_local std::vector<float> scratch;
  scratch.resize(inputs * kWideOutputs);
  const int64_t tiles = (rows + kWideRows - 1) / kWideRows, fewest = rows / tiles, larger = rows % tiles;
  for (int64_t n = 0; n < count; n += kWideOutputs) {
    const int64_t kept = std::min<int64_t>(kWideOutputs, count - n);
    Pack(weights + n * inputs, kept, inputs, scratch.data());
    const char* ahead = reinterpret_cast<const char*>(weights + (n + kWideOutputs) * inputs);
    int64_t left = kWideOutputs * inputs * 4 / 64;
    int64_t m = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t size = fewest + (tile < larger), lines = std::min(left, inputs / 8);
      PackedTileOf<kWideRows>(size, x + m, scratch.data(), inputs, kept, out + m * width + n, width, ahead, lines);
      ahead += 64 * lines;
      left -= lines;
      m += size;
    }
  }
}

#endif

}  // namespace
