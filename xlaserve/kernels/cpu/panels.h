// Products with weights that lie in panels: 32 outputs side by side, and of each as many inputs in a row as have 4 bytes, so [outputs / 32]
// [inputs / g][32][g], g being 1 for float32, 2 for bfloat16 and 4 for int8. A step of a product reads 128 bytes, which follow those of the
// step before, and multiplies each 4 bytes of them by the same 4 bytes of x: lanes are outputs, and never have to be added up. Every dot
// product is summed in the order of its inputs, whatever the tile.
//
// Included inside a namespace of its instruction set, after "lanes.h".

namespace {

constexpr int kPanel = 32;
constexpr int kPanelRows = kLanes == 16 ? 12 : 6;  // whose sums fit into registers, with 2 vectors of weights
constexpr bool kPairs = kLanes == 16;              // whether there are registers for those of two panels, and sums of so many rows:
constexpr int kPairRows = 6;

// What is done with the 4 bytes of a lane, in one phase or two. Without an instruction for them, bfloat16 and int8 are widened: numbers at
// even places in one phase, those at odd places in the other. Of x that is done once for all, by `Spread`: it has a word for each phase.

struct F32Panel {
  using Sum = float;
  static constexpr int kPhases = 1;
  template <int kPhase>
  static I Weights(I w) {
    return w;
  }
  static I MultiplyAdd(I acc, I x, I w) { return AsI(MultiplyAddF(AsF(acc), AsF(x), AsF(w))); }
};

struct Bf16Panel {
  using Sum = float;
#if defined(XLASERVE_BF16)
  static constexpr int kPhases = 1;
  template <int kPhase>
  static I Weights(I w) {
    return w;
  }
  static I MultiplyAdd(I acc, I x, I w) { return AsI(_mm512_dpbf16_ps(AsF(acc), (__m512bh)x, (__m512bh)w)); }
#else
  static constexpr int kPhases = 2;
  template <int kPhase>
  static I Weights(I w) {
    return kPhase == 0 ? LowBf16(w) : HighBf16(w);
  }
  static I MultiplyAdd(I acc, I x, I w) { return AsI(MultiplyAddF(AsF(acc), AsF(x), AsF(w))); }
  static void Spread(const uint16_t* __restrict line, int64_t inputs, uint32_t* __restrict words) {
    for (int64_t i = 0; i < inputs; ++i) words[i] = static_cast<uint32_t>(line[i]) << 16;
  }
#endif
};

struct S8Panel {
  using Sum = int32_t;
#if defined(XLASERVE_VNNI)
  static constexpr int kPhases = 1;
  template <int kPhase>
  static I Weights(I w) {
    return _mm512_xor_si512(w, _mm512_set1_epi8(-128));
  }
  static I MultiplyAdd(I acc, I x, I w) { return MultiplyAdd8(acc, w, x); }
#else
  static constexpr int kPhases = 2;
  template <int kPhase>
  static I Weights(I w) {
    return kPhase == 0 ? EvenBytes(w) : OddBytes(w);
  }
  static I MultiplyAdd(I acc, I x, I w) { return AddI(acc, MultiplyPairs(x, w)); }
  static void Spread(const int8_t* __restrict line, int64_t inputs, uint32_t* __restrict words) {
    const auto pair = [&](int64_t i) { return static_cast<uint16_t>(line[i]) | static_cast<uint32_t>(line[i + 2]) << 16; };
    for (int64_t i = 0; i < inputs; i += 4) {
      words[i / 2] = pair(i);
      words[i / 2 + 1] = pair(i + 1);
    }
  }
#endif
};

// A tile's way through its panels, or a part of it.
struct Way {
  int64_t begin, end;  // steps; from the second on, sums go on from what `out` has
  int64_t ahead;       // bytes from a panel to what is asked for meanwhile
  int64_t fetch;       // lines of the cache, of each panel every 8 steps
  bool once;           // whether no other tile reads the panels: then their own steps are asked for, so many before they are needed:
};
constexpr int64_t kOnceAhead = 32;

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
  const auto phase = [&]<int kPhase>(int64_t k) __attribute__((always_inline)) {
    I w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      w[v] = Op::template Weights<kPhase>(LoadI(panels[v / V] + k * (4 * kPanel) + v % V * (4 * kLanes)));
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      int32_t word;
      std::memcpy(&word, x[m] + 4 * (k * Op::kPhases + kPhase), 4);
      const I xv = SetI(word);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[m * kVectors + v] = Op::MultiplyAdd(acc[m * kVectors + v], xv, w[v]);
    }
  };
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    phase.template operator()<0>(k);
    if constexpr (Op::kPhases == 2) phase.template operator()<1>(k);
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
  if (way.once) {
    for (; k < way.end; ++k) {
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
        for (int line = 0; line < 4 * kPanel; line += 64) __builtin_prefetch(panels[p] + (k + kOnceAhead) * (4 * kPanel) + line, 0, 3);
      }
      step(k);
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
    PanelTile<Op, MR, P, kVectors>(x, some, {way.begin, way.end, way.ahead, v == 0 ? way.fetch : 0, v == 0 && way.once}, out + v * kLanes, width);
  }
}

}  // namespace
