// Products with weights that lie in panels: 32 outputs side by side, and of each as many inputs in a row as have 4 bytes, so [outputs / 32]
// [inputs / g][32][g], g being 1 for float32, 2 for bfloat16 and 4 for int8. A step of a product reads 128 bytes, which follow those of the
// step before, and multiplies each 4 bytes of them by the same 4 bytes of x: lanes are outputs, and never have to be added up. Every dot
// product is summed in the order of its inputs, whatever the tile.
//
// Included inside a namespace of its instruction set, after "lanes.h".

namespace {

constexpr int kPanel = 32;
constexpr int kPanelRows = kLanes == 16 ? 12 : 6;  // whose sums fit into registers, with 2 vectors of weights
constexpr int kPairRows = kPanelRows / 2;          // with those of two panels

// What is made of 4 bytes in each lane before they are multiplied, once for all that they meet.
struct Halves {
  I even;
  I odd;
};

struct F32Panel {
  using Sum = float;
  static constexpr bool kPairs = kLanes == 16;  // whether there are registers for the weights of two panels
  using Ready = I;
  static Ready Weights(I w) { return w; }
  static Ready X(I x) { return x; }
  static I MultiplyAdd(I acc, Ready x, Ready w) { return AsI(MultiplyAddF(AsF(acc), AsF(x), AsF(w))); }
};

struct Bf16Panel {
  using Sum = float;
#if defined(XLASERVE_VNNI)
  using Ready = I;
  static constexpr bool kPairs = true;
  static Ready Weights(I w) { return w; }
  static Ready X(I x) { return x; }
  static I MultiplyAdd(I acc, Ready x, Ready w) { return AsI(_mm512_dpbf16_ps(AsF(acc), (__m512bh)x, (__m512bh)w)); }
#else
  using Ready = Halves;
  static constexpr bool kPairs = false;
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
  static constexpr bool kPairs = true;
  static Ready Weights(I w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
  static Ready X(I x) { return x; }
  static I MultiplyAdd(I acc, Ready x, Ready w) { return MultiplyAdd8(acc, w, x); }
#else
  using Ready = Halves;
  static constexpr bool kPairs = false;
  static Ready Weights(I w) { return {EvenBytes(w), OddBytes(w)}; }
  static Ready X(I x) { return Weights(x); }
  static I MultiplyAdd(I acc, Ready x, Ready w) {
    return AddI(acc, AddI(MultiplyPairs(x.even, w.even), MultiplyPairs(x.odd, w.odd)));
  }
#endif
};

// A tile's way through its panels, or a part of it.
struct Way {
  int64_t begin, end;  // steps; from the second on, sums go on from what `out` has
  int64_t ahead;       // bytes from a panel to what is asked for meanwhile
  int64_t fetch;       // lines of the cache, of each panel every 8 steps
};

// MR lines of x times V vectors of each of P panels.
template <typename Op, int MR, int P, int V>
inline void PanelTile(const char* const* x, const char* const* panels, const Way& way, typename Op::Sum* __restrict out, int64_t width) {
  constexpr int kVectors = P * V;
  const auto place = [&](int i) __attribute__((always_inline)) { return out + i / kVectors * width + i % kVectors / V * kPanel + i % V * kLanes; };
  I acc[MR * kVectors];
  if (way.begin == 0) {
#pragma GCC unroll 32
    for (int i = 0; i < MR * kVectors; ++i) acc[i] = AsI(ZeroF());
  } else {
#pragma GCC unroll 32
    for (int i = 0; i < MR * kVectors; ++i) acc[i] = LoadI(reinterpret_cast<const char*>(place(i)));
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    typename Op::Ready w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = Op::Weights(LoadI(panels[v / V] + k * (4 * kPanel) + v % V * (4 * kLanes)));
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      int32_t word;
      std::memcpy(&word, x[m] + 4 * k, 4);
      const typename Op::Ready xv = Op::X(SetI(word));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[m * kVectors + v] = Op::MultiplyAdd(acc[m * kVectors + v], xv, w[v]);
    }
  };
  int64_t k = way.begin;
  if (way.fetch > 0) {
    for (int64_t ahead = way.ahead; k + 8 <= way.end; k += 8) {
      for (int64_t line = 0; line < way.fetch; ++line, ahead += 64) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) __builtin_prefetch(panels[p] + ahead, 0, 2);
      }
      for (int64_t i = 0; i < 8; ++i) step(k + i);
    }
  }
  for (; k < way.end; ++k) step(k);
#pragma GCC unroll 32
  for (int i = 0; i < MR * kVectors; ++i) StoreI(place(i), acc[i]);
}

// A tile of `lines` lines of x, at most MR, and P panels. As many vectors of a panel at once as there are registers for: fewer passes over it.
template <typename Op, int MR, int P>
inline void PanelRows(int64_t lines, const char* const* x, const char* const* panels, const Way& way, typename Op::Sum* __restrict out,
                      int64_t width) {
  if constexpr (MR > 1) {
    if (lines < MR) return PanelRows<Op, MR - 1, P>(lines, x, panels, way, out, width);
  }
  constexpr int kAll = kPanel / kLanes, kVectors = P * kAll * MR <= 2 * kPanelRows ? kAll : 2;
  for (int v = 0; v < kAll; v += kVectors) {
    const char* some[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) some[p] = panels[p] + v * (4 * kLanes);
    PanelTile<Op, MR, P, kVectors>(x, some, {way.begin, way.end, way.ahead, v == 0 ? way.fetch : 0}, out + v * kLanes, width);
  }
}

}  // namespace
