// y = epilogue(prologue(x) @ weight.T): the matrix product of a Linear layer, with what stands around it in a decoder layer.
//
// Weights lie in panels (panels.h), or, where their numbers do not divide into panels, as checkpoints have them, [outputs, inputs]. Then both
// operands of a dot product are contiguous: a register tile holds as many dot products as a vector has lanes, and their lanes are added up
// together. Either way every dot product is computed in the same order whatever the tile: a row's result does not depend on the rows beside
// it, nor on the number of threads.
//
// Included inside a namespace of its instruction set, after "dot_steps.h" has defined what a step is.

namespace {

// A tile of MR rows of x and NR rows of weights; `out` gets its MR * NR dot products.
template <typename Op, int MR, int NR>
inline void Tile(const typename Op::X* const* x, const typename Op::W* const* w, int64_t inputs, typename Op::Sum* __restrict out) {
  typename Op::Acc acc[MR * NR];
#pragma GCC unroll 32
  for (int i = 0; i < MR * NR; ++i) acc[i] = Op::Zero();
  const auto step = [&](auto load_x, auto load_w) __attribute__((always_inline)) {
    typename Op::WV wv[NR];
#pragma GCC unroll 16
    for (int n = 0; n < NR; ++n) wv[n] = load_w(w[n]);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m) {
      const typename Op::XV xv = load_x(x[m]);
#pragma GCC unroll 16
      for (int n = 0; n < NR; ++n) acc[m * NR + n] = Op::MultiplyAdd(acc[m * NR + n], xv, wv[n]);
    }
  };
  int64_t k = 0;
  for (; k + Op::kStep <= inputs; k += Op::kStep) {
    step([&](const typename Op::X* p) __attribute__((always_inline)) { return Op::LoadX(p + k); },
         [&](const typename Op::W* p) __attribute__((always_inline)) { return Op::LoadW(p + k); });
  }
  if (k < inputs) {
    const int64_t rest = inputs - k;
    step([&](const typename Op::X* p) __attribute__((always_inline)) { return Op::LoadX(p + k, rest); },
         [&](const typename Op::W* p) __attribute__((always_inline)) { return Op::LoadW(p + k, rest); });
  }
  Op::template AddLanes<MR * NR>(acc, out);
}

template <typename Op>
class Product {
 public:
  using X = typename Op::X;
  using W = typename Op::W;

  explicit Product(const LinearArgs& args) : a_(args), weights_(static_cast<const W*>(args.weight)), halves_(args.gated() ? 2 : 1),
        outputs_(args.outputs / halves_) {}

  void Run(Pool& pool) {
    Prepare(pool);
    const int64_t blocks = (a_.rows + kRowBlock - 1) / kRowBlock, block = (a_.rows + blocks - 1) / blocks;
    const int64_t panels = (outputs_ + kPanel - 1) / kPanel, some = PanelsOfPart(panels, block, pool.threads());
    // As many parts for each thread, and the larger ones first: so threads end together, as far as they are as fast as each other.
    const int64_t fewest = (panels + some - 1) / some;
    const int64_t parts = std::min(panels, (fewest + pool.threads() - 1) / pool.threads() * pool.threads());
    const auto place = [&](int64_t part) { return std::min(outputs_, (part * (panels / parts) + std::min(part, panels % parts)) * kPanel); };
    pool.Run(parts * blocks, [&](int64_t task) {
      // Threads go through the weights in the order in which they lie, the blocks of rows of one part of them following each other.
      const int64_t part = task / blocks, first = place(part), count = place(part + 1) - first;
      const int64_t row = task % blocks * block, rows = std::min(block, a_.rows - row);
      if (a_.panels) {
        // The part that this thread will probably compute next has these.
        PanelOutputs(first, count, row, rows, place(std::min(parts, (task + pool.threads()) / blocks)));
      } else {
        Outputs(first, count, row, rows);
      }
    });
  }

 private:
  static constexpr int kRows = Op::kRows, kColumns = Op::kColumns;
  static constexpr int64_t kParts = Op::kQuantizes ? 2 : 1;  // lines of prepared x that a row becomes
  static constexpr int64_t kRowBlock = 252;
  static constexpr int64_t kPartBytes = 256 << 10;
  static constexpr int64_t kMostDots = 1 << 15;
  static constexpr int64_t kStepBytes = 4 * kPanel;       // of a panel
  static constexpr int64_t kFetch = 8 * kStepBytes / 64;  // lines of the cache in 8 of them
  static constexpr int64_t kMostSteps = 512;              // whose panels, and the next ones, leave x room in the second-level cache

  // Whether a tile's rows of x lie so far apart that the first-level cache has only 8 places for all of them: then they are moved to where
  // lines of prepared x are (a quarter faster with 2,048 inputs).
  bool RowsCollide() const { return a_.panels && a_.rows >= 8 && a_.inputs * sizeof(X) % 4096 == 0; }

  // Whether a core reads memory faster where it is told what comes. By itself it reads ahead as far as the loads reach that it looks at
  // beforehand, and the more is done with each of them the fewer these are. On AMD's processors float32 was slower for it (docs/kernels.md).
  static bool AsksAhead() {
    static const bool asks = !__builtin_cpu_is("amd");
    return asks;
  }

  // Panels' widths of outputs that a part of the work has at most.
  int64_t PanelsOfPart(int64_t panels, int64_t block, int64_t threads) const {
    // With several tiles of rows, a panel takes longer than what there is to do once for each part of the work.
    if (a_.panels && block * kParts > kPanelRows) return kPairs && halves_ == 1 ? 2 : 1;
    // Few and large parts: small ones let threads end together, but then neighbours in memory are read by different cores, and what one
    // core reads ahead is the other's (a fifth slower with eight parts a thread).
    const int64_t row_bytes = a_.inputs * static_cast<int64_t>(sizeof(W)) * halves_;
    const int64_t most = std::min(kMostDots / (block * kParts * halves_), kPartBytes / row_bytes);
    return std::clamp<int64_t>((panels + 2 * threads - 1) / (2 * threads), 1, std::max<int64_t>(most / kPanel, 1));
  }

  // What x becomes before it is multiplied: normalized, for int8 quantized, and spread where panels want that. Where that is nothing,
  // mostly x itself.
  void Prepare(Pool& pool) {
    constexpr bool kSpreads = Op::Panel::kPhases == 2;
    x_ = reinterpret_cast<const X**>(a_.row_scratch);
    if (!Op::kQuantizes && a_.norm == nullptr && !RowsCollide() && !(kSpreads && a_.panels)) {
      for (int64_t i = 0; i < a_.rows; ++i) x_[i] = static_cast<const X*>(a_.x) + a_.row(i) * a_.inputs;
      return;
    }
    const int64_t padded = a_.padded_inputs();
    const auto prepare = [&](int64_t i) {
      if constexpr (kSpreads) {
        if (a_.panels) {
          static thread_local std::vector<X> plain;
          plain.resize(kParts * padded);
          Op::Prepare(a_, i, plain.data());
          for (int64_t line = 0; line < kParts; ++line) {
            uint32_t* const words = static_cast<uint32_t*>(a_.x_scratch) + (i * kParts + line) * padded / kParts;
            Op::Panel::Spread(plain.data() + line * padded, a_.inputs, words);
            x_[i * kParts + line] = reinterpret_cast<const X*>(words);
          }
          return;
        }
      }
      X* const lines = static_cast<X*>(a_.x_scratch) + i * kParts * padded;
      Op::Prepare(a_, i, lines);
      for (int64_t part = 0; part < kParts; ++part) x_[i * kParts + part] = lines + part * padded;
    };
    if (a_.rows * a_.inputs <= 8192) {
      for (int64_t i = 0; i < a_.rows; ++i) prepare(i);
    } else {
      const int64_t some = std::max<int64_t>(1, 8192 / a_.inputs);
      pool.Run((a_.rows + some - 1) / some, [&](int64_t part) {
        for (int64_t i = part * some; i < std::min(a_.rows, (part + 1) * some); ++i) prepare(i);
      });
    }
  }

  // Outputs of weights in panels. Of more than one tile of rows, `count` is one panel, or two that are read side by side. These meet all
  // rows some steps at a time, as many as the second-level cache has room for beside the next ones, which are asked for meanwhile, evenly
  // over all tiles. With the last steps each tile's dot products are finished while they are in the first-level cache.
  void PanelOutputs(int64_t first, int64_t count, int64_t row, int64_t rows, int64_t next) const {
    using Panel = typename Op::Panel;
    alignas(64) static thread_local typename Op::Sum out[kMostDots];
    const int64_t width = count * halves_;
    const bool pair = kPairs && rows * kParts > kPanelRows && width == 2 * kPanel;
    const int64_t tile_rows = (pair ? kPairRows : kPanelRows) / kParts;
    const int64_t tiles = (rows + tile_rows - 1) / tile_rows, fewest = rows / tiles, larger = rows % tiles;
    const int64_t panel_bytes = kPanel * a_.inputs * static_cast<int64_t>(sizeof(W)), steps = panel_bytes / kStepBytes;
    const char* const weights = reinterpret_cast<const char*>(weights_);
    const char* halves[2] = {weights + first / kPanel * panel_bytes, weights + (outputs_ + first) / kPanel * panel_bytes};
    if (pair && halves_ == 1) halves[1] = halves[0] + panel_bytes;
    const bool once = tiles == 1 && AsksAhead();
    // A single tile reads as fast as memory goes.
    const int64_t ways = tiles == 1 ? 1 : (steps + kMostSteps - 1) / kMostSteps, some = (steps / ways + 7) / 8 * 8;
    for (int64_t begin = 0; begin < steps; begin += some) {
      const int64_t end = tiles == 1 ? steps : std::min(begin + some, steps);
      const int64_t following = end < steps ? end * kStepBytes : (next - first) / kPanel * panel_bytes;
      const bool fetches = tiles > 1 && (end < steps || (next != first && next < outputs_));
      for (int64_t tile = 0, line = 0; tile < tiles; ++tile) {
        const int64_t size = fewest + (tile < larger), at = row + line, fetched = tile * kFetch / tiles;
        const Way way{begin, end, following + (end - begin) / 8 * fetched * 64, fetches ? (tile + 1) * kFetch / tiles - fetched : 0, once};
        const char* const* const x = reinterpret_cast<const char* const*>(x_ + at * kParts);
        typename Op::Sum* const dots = out + line * kParts * width;
        if constexpr (kPairs) {
          if (pair) PanelRows<Panel, kPairRows, 2>(size * kParts, x, halves, way, dots, width);
        }
        for (int64_t half = 0; !pair && half < halves_; ++half) {
          for (int64_t n = 0; n < count; n += kPanel) {
            const char* const panel = halves[half] + n / kPanel * panel_bytes;
            PanelRows<Panel, kPanelRows, 1>(size * kParts, x, &panel, way, dots + half * count + n, width);
          }
        }
        for (int64_t m = 0; end == steps && m < size; ++m) Finish(first, count, at + m, dots + m * kParts * width, width);
        line += size;
      }
    }
  }

  void Outputs(int64_t first, int64_t count, int64_t row, int64_t rows) const {
    alignas(64) static thread_local typename Op::Sum out[kMostDots];
    const int64_t width = count * halves_;
    for (int64_t half = 0; half < halves_; ++half) {
      Columns(weights_ + (first + half * outputs_) * a_.inputs, count, row * kParts, rows * kParts, width, out + half * count);
    }
    for (int64_t m = 0; m < rows; ++m) Finish(first, count, row + m, out + m * kParts * width, width);
  }

  // Dot products of `lines` lines of x with `count` rows of weights. A tile's weights meet all lines before the next ones are read, and the
  // lines are shared out evenly: tiles of a single line would wait for their loads.
  void Columns(const W* weights, int64_t count, int64_t line, int64_t lines, int64_t width, typename Op::Sum* out) const {
    const int64_t tiles = (lines + kRows - 1) / kRows, fewest = lines / tiles, larger = lines % tiles;
    for (int64_t n = 0; n < count; n += kColumns) {
      // What lies past the last row of weights is computed from the last one, and not kept.
      const int64_t kept = std::min<int64_t>(kColumns, count - n);
      const W* w[kColumns];
      for (int64_t i = 0; i < kColumns; ++i) w[i] = weights + (n + std::min(i, kept - 1)) * a_.inputs;
      int64_t m = 0;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t size = fewest + (tile < larger);
        OneTile<kRows>(size, w, kept, line + m, out + m * width + n, width);
        m += size;
      }
    }
  }

  // A tile of `size` lines, at most MR.
  template <int MR>
  void OneTile(int64_t size, const W* const* w, int64_t kept, int64_t line, typename Op::Sum* out, int64_t width) const {
    if constexpr (MR > 1) {
      if (size < MR) return OneTile<MR - 1>(size, w, kept, line, out, width);
    }
    alignas(64) typename Op::Sum tile[MR * kColumns];
    Tile<Op, MR, kColumns>(x_ + line, w, a_.inputs, tile);
    for (int m = 0; m < MR; ++m) std::copy_n(tile + m * kColumns, kept, out + m * width);
  }

  // From dot products to what is stored.
  void Finish(int64_t first, int64_t count, int64_t row, typename Op::Sum* dots, int64_t width) const {
    float* const y = Op::Scale(a_, row, first, count, halves_, dots, width);
    if (a_.bias != nullptr) {
      for (int64_t half = 0; half < halves_; ++half) AddTo(y + half * count, a_.bf16, a_.bias, half * outputs_ + first, count);
    }
    Activate(a_.activation, y, y + count, count);
    const int64_t at = a_.row(row) * outputs_ + first;
    if (a_.residual != nullptr) AddTo(y, a_.bf16, a_.residual, at, count);
    Store(a_.out_bf16, a_.y, at, y, count);
  }

  const LinearArgs& a_;
  const W* const weights_;
  const int64_t halves_;   // 2 of a gated layer: what goes through the activation, and what that multiplies
  const int64_t outputs_;  // of each half
  const X** x_ = nullptr;
};

}  // namespace
