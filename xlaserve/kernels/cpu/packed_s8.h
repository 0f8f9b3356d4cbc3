// Products of many lines of 8-bit x with int8 weights, where the instruction for them is there. Sums of integers are the same in any order,
// so for many lines the weights are transposed first, four inputs of 16 outputs to a vector: a lane then holds the sum of one output, and no
// lanes have to be added up. Included inside a namespace of its instruction set.

namespace {

#if defined(XLASERVE_VNNI)

// The instruction itself: of its intrinsic, gcc copies accumulators back and forth until it runs out of registers.
inline __m512i MultiplyAdd8(__m512i acc, __m512i unsigned_x, __m512i w) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_x), "v"(w));
  return acc;
}

// Transposes 16 vectors of 16 numbers of 32 bits.
inline void Transpose(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Piece j of r[4 q + c] now holds column 4 j + c of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), high = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd), odd_high = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(low, high, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(low, high, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

constexpr int kPackedOutputs = 32, kPackedLines = 12;

// 32 rows of weights, or as many as there are and zeros, as [inputs / 4][32][4]; `sums` gets the sum of each row.
inline void Pack(const int8_t* weights, int64_t rows, int64_t inputs, __m512i* to, int32_t* sums) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int half = 0; half < 2; ++half) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < inputs; k += 64) {
      const int64_t count = std::min<int64_t>(64, inputs - k);
      const __mmask64 some = count == 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
      __m512i r[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        const int64_t row = 16 * half + i;
        const int8_t* const from = weights + row * inputs + k;
        r[i] = row < rows ? _mm512_maskz_loadu_epi8(some, from) : _mm512_setzero_si512();
        __builtin_prefetch(from + 32 * inputs);
      }
      Transpose(r);
      const int64_t quads = (count + 3) / 4;
      for (int64_t i = 0; i < quads; ++i) {
        sum = MultiplyAdd8(sum, ones, r[i]);
        to[(k / 4 + i) * 2 + half] = r[i];
      }
    }
    _mm512_storeu_si512(sums + 16 * half, sum);
  }
}

// A tile of MR lines and 32 outputs, of which `kept` are stored.
template <int MR>
inline void PackedTile(const uint8_t* const* x, const __m512i* packed, int64_t inputs, int64_t kept, int32_t* out, int64_t width) {
  __m512i acc[2 * MR];
#pragma GCC unroll 32
  for (int i = 0; i < 2 * MR; ++i) acc[i] = _mm512_setzero_si512();
  const int64_t quads = (inputs + 3) / 4;
  for (int64_t k = 0; k < quads; ++k) {
    const __m512i first = packed[2 * k], second = packed[2 * k + 1];
#pragma GCC unroll 12
    for (int m = 0; m < MR; ++m) {
      int32_t four;
      std::memcpy(&four, x[m] + 4 * k, 4);
      const __m512i xv = _mm512_set1_epi32(four);
      acc[2 * m] = MultiplyAdd8(acc[2 * m], xv, first);
      acc[2 * m + 1] = MultiplyAdd8(acc[2 * m + 1], xv, second);
    }
  }
  const __mmask16 keep_first = kept >= 16 ? 0xffff : (1u << kept) - 1;
  const __mmask16 keep_second = kept >= 32 ? 0xffff : kept <= 16 ? 0 : (1u << (kept - 16)) - 1;
#pragma GCC unroll 12
  for (int m = 0; m < MR; ++m) {
    _mm512_mask_storeu_epi32(out + m * width, keep_first, acc[2 * m]);
    _mm512_mask_storeu_epi32(out + m * width + 16, keep_second, acc[2 * m + 1]);
  }
}

template <int MR>
inline void PackedTileOf(int64_t lines, const uint8_t* const* x, const __m512i* packed, int64_t inputs, int64_t kept, int32_t* out,
                         int64_t width) {
  if constexpr (MR > 1) {
    if (lines < MR) return PackedTileOf<MR - 1>(lines, x, packed, inputs, kept, out, width);
  }
  PackedTile<MR>(x, packed, inputs, kept, out, width);
}

// As Product::Columns.
inline void PackedColumns(const int8_t* weights, int64_t count, int64_t inputs, const uint8_t* const* x, int64_t lines, int64_t width,
                          int32_t* out, int32_t* sums) {
  static thread_local std::vector<__m512i> scratch;
  scratch.resize(2 * ((inputs + 63) / 64 * 16) + 1);
  const int64_t tiles = (lines + kPackedLines - 1) / kPackedLines, fewest = lines / tiles, larger = lines % tiles;
  for (int64_t n = 0; n < count; n += kPackedOutputs) {
    const int64_t kept = std::min<int64_t>(kPackedOutputs, count - n);
    int32_t row_sums[kPackedOutputs];
    Pack(weights + n * inputs, kept, inputs, scratch.data(), row_sums);
    std::copy_n(row_sums, kept, sums + n);
    int64_t m = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t size = fewest + (tile < larger);
      PackedTileOf<kPackedLines>(size, x + m, scratch.data(), inputs, kept, out + m * width + n, width);
      m += size;
    }
  }
}

#endif

}  // namespace
