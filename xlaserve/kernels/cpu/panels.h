// Products with weights that lie in panels: 32 outputs side by side, and of each as many inputs in a row as have 4 bytes, so [outputs / 32]
// [inputs / g][32][g], g being 1 for float32, 2 for bfloat16 and 4 for int8. A step of a product reads 128 bytes, which follow those of the
// step before, and multiplies each 4 bytes of them by the same 4 bytes of x: lanes are outputs, and never have to be added up. Every dot
// product is summed in the order of its inputs, whatever the tile.
//
// Included inside a namespace of its instruction set, after "lanes.h".

namespace {

constexpr int kPanel = 32;
constexpr int kPanelRows = kLanes == 16 ? 12 : 6;  // whose sums fit into registers, with 2 vectors of weights

// What is made of 4 bytes in each lane before they are multiplied, once for all that they meet.
struct Halves {
  I even;
  I odd;
};

struct F32Panel {
  using Sum = float;
  using Ready = I;
  static Ready Weights(I w) { return w; }
  static Ready X(I x) { return x; }
  static I MultiplyAdd(I acc, Ready x, Ready w) { return AsI(MultiplyAddF(AsF(acc), AsF(x), AsF(w))); }
};

struct Bf16Panel {
  using Sum = float;
#if defined(XLASERVE_VNNI)
  using Ready = I;
  static Ready Weights(I w) { return w; }
  static Ready X(I x) { return x; }
  static I MultiplyAdd(I acc, Ready x, Ready w) { return AsI(_mm512_dpbf16_ps(AsF(acc), (__m512bh)x, (__m512bh)w)); }
#else
  using Ready = Halves;
  static Ready Weights(I w) { return {LowBf16(w), HighBf16(w)}; }
  static Ready X(I x) { return {LowBf16(x), HighBf16(x)}; }
  static I MultiplyAdd(I acc, Ready x, Ready w) {
    return AsI(MultiplyAddF(MultiplyAddF(AsF(acc), AsF(x.even), AsF(w.even)), AsF(x.odd), AsF(w.odd)));
  }
#endif
};

struct S8Panel {
  using Sum = int32_t;
#if defined(XLASERVE_VNNI)
  using Ready = I;
  static Ready Weights(I w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
  static Ready X(I x) { return x; }
  static I MultiplyAdd(I acc, Ready x, Ready w) { return MultiplyAdd8(acc, w, x); }
#else
  using Ready = Halves;
  static Ready Weights(I w) { return {EvenBytes(w), OddBytes(w)}; }
  static Ready X(I x) { return Weights(x); }
  static I MultiplyAdd(I acc, Ready x, Ready w) {
    return AddI(acc, AddI(MultiplyPairs(x.even, w.even), MultiplyPairs(x.odd, w.odd)));
  }
#endif
};

// MR lines of x times V vectors of a panel, from `panel` on. Of the memory from `ahead` on, `fetch` lines of the cache are asked for every
// 8 steps.
template <typename Op, int MR, int V>
inline void PanelTile(const char* const* x, const char* panel, int64_t steps, typename Op::Sum* __restrict out, int64_t width,
                      const char* ahead, int64_t fetch) {
  I acc[MR * V];
#pragma GCC unroll 32
  for (int i = 0; i < MR * V; ++i) acc[i] = AsI(ZeroF());
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    typename Op::Ready w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = Op::Weights(LoadI(panel + k * (4 * kPanel) + v * (4 * kLanes)));
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      int32_t word;
      std::memcpy(&word, x[m] + 4 * k, 4);
      const typename Op::Ready xv = Op::X(SetI(word));
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[m * V + v] = Op::MultiplyAdd(acc[m * V + v], xv, w[v]);
    }
  };
  int64_t k = 0;
  if (fetch > 0) {
    for (; k + 8 <= steps; k += 8) {
      for (int64_t line = 0; line < fetch; ++line) __builtin_prefetch(ahead + 64 * line, 0, 2);
      ahead += 64 * fetch;
      for (int64_t i = 0; i < 8; ++i) step(k + i);
    }
  }
  for (; k < steps; ++k) step(k);
#pragma GCC unroll 16
  for (int m = 0; m < MR; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) StoreI(out + m * width + v * kLanes, acc[m * V + v]);
  }
}

// As many vectors of a panel at once as there are registers for: fewer passes over it.
template <typename Op, int MR>
inline void PanelRows(int64_t lines, const char* const* x, const char* panel, int64_t steps, typename Op::Sum* __restrict out, int64_t width,
                      const char* ahead, int64_t fetch) {
  if constexpr (MR > 1) {
    if (lines < MR) return PanelRows<Op, MR - 1>(lines, x, panel, steps, out, width, ahead, fetch);
  }
  constexpr int kAll = kPanel / kLanes, kVectors = kAll * MR <= 2 * kPanelRows ? kAll : 2;
  for (int v = 0; v < kAll; v += kVectors) {
    PanelTile<Op, MR, kVectors>(x, panel + v * (4 * kLanes), steps, out + v * kLanes, width, ahead, v == 0 ? fetch : 0);
  }
}

}  // namespace
