// Paged attention of one layer: from the fused projection of queries, keys and values to what the output projection takes.
//
// New keys and values go into their blocks first. Then every query reads its context in segments of 256 keys at fixed places; each segment
// has a softmax of its own, and segments merge in their order (as in FlashAttention, Dao 2022, and Flash-Decoding, 2023). All sums run in
// one order that follows from a query's position alone: what comes out does not depend on the rows beside it, on the number of threads, nor
// on whether a token came in a chunk or alone.
//
// Scores are computed with lanes over keys, from a transposed copy of 64 keys; sums of values with lanes over the head's numbers.
//
// Included once for each instruction set, inside a namespace of its own, after "simd.h".

namespace {

using ::xlaserve::AttentionArgs;
using ::xlaserve::CallBuffer;
using ::xlaserve::Pool;
using ::xlaserve::ThreadBytes;

constexpr int kSegment = 256;
constexpr int kPiece = 64;                    // keys that are transposed together
constexpr int kWeightStride = kSegment + 16;  // rows of weights do not fall on the same lines of the cache
constexpr int kTileRows = 6;                  // query rows of a register tile
constexpr int kTaskRows = 96;                 // query rows of a task, where a group of heads has no more
constexpr int kAhead = 64;                    // values that are on their way while one is added
constexpr float kMasked = -1e30f;

inline void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

inline int64_t DividedUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Vectors beside each other in a register tile of so many rows.
constexpr int Across(int rows) {
  const int most = (Floats::kRegisters - (Floats::kRegisters == 32 ? 6 : 4)) / rows;
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

inline Floats Rounded(Floats x, const float*) { return x; }
inline Floats Rounded(Floats x, const Bf16*) {
  alignas(64) Bf16 some[Floats::kLanes];
  Store(some, x);
  return Load(some);
}

template <typename T>
inline Floats LoadSome(const T* p, int64_t n) {
  return n >= Floats::kLanes ? Load(p) : LoadFirst(p, static_cast<int>(n));
}
template <typename T>
inline void StoreSome(T* p, Floats x, int64_t n) {
  if (n >= Floats::kLanes) {
    Store(p, x);
  } else {
    StoreFirst(p, x, static_cast<int>(n));
  }
}

// Calls f.operator()<R>(first row) for register tiles of nearly equal height that cover `rows` rows.
template <typename F>
inline void ForTiles(int64_t rows, const F& f) {
  const int64_t tiles = DividedUp(rows, kTileRows);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = rows * i / tiles;
    switch (rows * (i + 1) / tiles - first) {
      case 1: f.template operator()<1>(first); break;
      case 2: f.template operator()<2>(first); break;
      case 3: f.template operator()<3>(first); break;
      case 4: f.template operator()<4>(first); break;
      case 5: f.template operator()<5>(first); break;
      default: f.template operator()<6>(first); break;
    }
  }
}

// weights[r][0 .. N * lanes) = the products of R queries with as many keys, `keys` being [D, kPiece].
template <int R, int N>
inline void Scores(const float* queries, int64_t dim, const float* keys, float* weights) {
  Floats sums[R * N];
#pragma GCC unroll 32
  for (auto& sum : sums) sum = Zero();
  for (int64_t d = 0; d < dim; ++d) {
    Floats k[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) k[n] = Load(keys + d * kPiece + n * Floats::kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Floats q = Set(queries[r * dim + d]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[r * N + n] = MultiplyAdd(q, k[n], sums[r * N + n]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) Store(weights + r * kWeightStride + n * Floats::kLanes, sums[r * N + n]);
  }
}

// How a segment joins what came before it: out = out * kept + new * added.
struct Shares {
  float kept;
  float added;
};

// Running softmax of query rows: sums of weights and of weighted values, as if the largest score so far were 0.
struct Partial {
  float* peaks;   // [rows]
  float* totals;  // [rows]
  float* out;     // [rows, stride]

  void Clear(int64_t rows, int64_t stride) const {
    std::fill_n(peaks, rows, kMasked);
    std::fill_n(totals, rows, 0.0f);
    std::fill_n(out, rows * stride, 0.0f);
  }

  // Takes in a row's next part, whose values the caller adds with the shares that this gives.
  Shares Join(int64_t row, float peak, float total) const {
    const float both = std::max(peaks[row], peak);
    alignas(64) float shares[Floats::kLanes] = {peaks[row] - both, peak - both};
    Store(shares, Exp(Load(shares)));
    peaks[row] = both;
    totals[row] = std::fma(totals[row], shares[0], total * shares[1]);
    return {shares[0], shares[1]};
  }
};

// out[r] = out[r] * kept + (weights[r] @ values) * added, for R rows and N vectors across; `rest`: numbers in the vector, where N is 1.
template <int R, int N, typename T>
inline void AddValues(const float* weights, const T* values, const int64_t* places, int64_t first, int64_t last, const Shares* shares,
                      float* out, int64_t stride, int64_t rest) {
  Floats sums[R * N];
#pragma GCC unroll 32
  for (auto& sum : sums) sum = Zero();
  const auto step = [&](int64_t key, auto load) __attribute__((always_inline)) {
    Floats v[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      v[n] = load(values + places[key] + n * Floats::kLanes);
      if (n * Floats::kLanes * sizeof(T) % 64 == 0) Prefetch(values + places[key + kAhead] + n * Floats::kLanes);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Floats w = Set(weights[r * kWeightStride + key]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[r * N + n] = MultiplyAdd(w, v[n], sums[r * N + n]);
    }
  };
  if (N > 1 || rest >= Floats::kLanes) {
    for (int64_t key = first; key < last; ++key) step(key, [](const T* p) { return Load(p); });
  } else {
    for (int64_t key = first; key < last; ++key) step(key, [&](const T* p) { return LoadFirst(p, static_cast<int>(rest)); });
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      float* const at = out + r * stride + n * Floats::kLanes;
      Store(at, MultiplyAdd(Load(at), Set(shares[r].kept), sums[r * N + n] * Set(shares[r].added)));
    }
  }
}

// T: what projections and caches hold.
template <typename T>
class PagedAttention {
 public:
  explicit PagedAttention(const AttentionArgs& args)
      : a_(args),
        dim_(args.head_dim),
        stride_(DividedUp(args.head_dim, Floats::kLanes) * Floats::kLanes),
        group_(args.heads / args.kv_heads),
        tokens_(std::clamp<int64_t>(kTaskRows / group_, 1, args.length)),
        task_rows_(tokens_ * group_),
        qkv_(static_cast<const T*>(args.qkv)),
        keys_(static_cast<T*>(args.keys)),
        values_(static_cast<T*>(args.values)),
        out_(static_cast<T*>(args.out)) {}

  bool Run(Pool& pool) {
    int64_t spans = 0, segments = 0;
    for (int64_t row = 0; row < a_.rows; ++row) {
      for (int64_t first = 0; first < a_.lengths[row]; first += tokens_, ++spans) segments += SpanAt(row, first).segments;
    }
    // With few spans, segments are tasks of their own.
    split_ = spans * a_.kv_heads < 8 * pool.threads() && segments > spans;
    alone_ = a_.length == 1;
    const int64_t queries = alone_ ? 0 : DividedUp(a_.places * a_.heads * dim_, 16) * 16;
    const int64_t partials = split_ ? segments * a_.kv_heads * PartialFloats() : 0;
    const CallBuffer buffer((queries + partials) * sizeof(float) + spans * sizeof(Span) + spans * a_.kv_heads * sizeof(std::atomic<int32_t>));
    if (buffer.data() == nullptr) return false;
    queries_ = static_cast<float*>(buffer.data());
    partials_ = queries_ + queries;
    spans_ = reinterpret_cast<Span*>(partials_ + partials);
    open_ = reinterpret_cast<std::atomic<int32_t>*>(spans_ + spans);
    count_ = spans;

    int64_t tasks = 0;
    Span* next = spans_;
    for (int64_t row = 0; row < a_.rows; ++row) {
      for (int64_t first = 0; first < a_.lengths[row]; first += tokens_) {
        Span span = SpanAt(row, first);
        span.first_task = tasks;
        tasks += a_.kv_heads * (split_ ? span.segments : 1);
        for (int64_t head = 0; split_ && head < a_.kv_heads; ++head) {
          new (&open_[(next - spans_) * a_.kv_heads + head]) std::atomic<int32_t>(static_cast<int32_t>(span.segments));
        }
        *next++ = span;
      }
    }

    std::atomic<bool> memory{true};
    if (alone_) {
      for (int64_t row = 0; row < a_.rows; ++row) {
        if (a_.lengths[row] == 0) ClearOut(row, 0);
      }
    } else {
      constexpr int64_t kPlaces = 16;
      pool.Run(DividedUp(a_.places, kPlaces), [&](int64_t part) {
        const int64_t first = part * kPlaces;
        // Rows without tokens begin where the next one does: the last of them is taken.
        int64_t row = std::upper_bound(a_.first, a_.first + a_.rows, first) - a_.first - 1;
        for (int64_t place = first; place < std::min(first + kPlaces, a_.places); ++place) {
          while (row + 1 < a_.rows && a_.first[row + 1] <= place) ++row;
          Prepare(row, place - a_.first[row]);
        }
      });
    }
    pool.Run(tasks, [&](int64_t task) {
      if (!Compute(task)) memory.store(false, std::memory_order_relaxed);
    });
    return memory.load();
  }

 private:
  // Tokens of one row that are computed together, and the segments of keys that they see.
  struct Span {
    int64_t row;
    int64_t first;
    int64_t tokens;
    int64_t segment;
    int64_t segments;
    int64_t first_task;
  };

  // What a thread computes with.
  struct Work {
    float* queries;   // [rows, D]
    float* keys;      // [D, kPiece]
    float* weights;   // [rows, kWeightStride]
    Shares* shares;   // [rows]
    Partial running;  // of all segments so far
    alignas(64) int64_t places[kSegment + kAhead];  // where each key of the segment begins in its cache
  };

  int64_t PartialFloats() const { return DividedUp(task_rows_ * (stride_ + 2), 16) * 16; }

  Partial PartialAt(float* at) const {
    return {at + task_rows_ * stride_, at + task_rows_ * (stride_ + 1), at};
  }

  int64_t Position(int64_t row, int64_t token) const { return a_.positions[a_.first[row] + token]; }

  // The first key that a query at this position sees.
  int64_t FirstSeen(int64_t position) const { return a_.window == 0 ? 0 : std::max<int64_t>(0, position - a_.window + 1); }

  Span SpanAt(int64_t row, int64_t first) const {
    const int64_t tokens = std::min<int64_t>(tokens_, a_.lengths[row] - first);
    const int64_t segment = FirstSeen(Position(row, first)) / kSegment;
    return {row, first, tokens, segment, Position(row, first + tokens - 1) / kSegment + 1 - segment, 0};
  }

  // Where a key or value of a head is in its cache.
  int64_t Place(int64_t row, int64_t position, int64_t head) const {
    const int64_t block = a_.block_tables[row * a_.width + position / a_.block_size];
    return ((block * a_.kv_heads + head) * a_.block_size + (position & (a_.block_size - 1))) * dim_;
  }

  const T* Projected(int64_t row, int64_t token, int64_t head) const {
    return qkv_ + ((a_.first[row] + token) * (a_.heads + 2 * a_.kv_heads) + head) * dim_;
  }

  T* OutAt(int64_t row, int64_t token, int64_t head) const { return out_ + ((a_.first[row] + token) * a_.heads + head) * dim_; }

  void ClearOut(int64_t row, int64_t token) const { std::memset(static_cast<void*>(OutAt(row, token, 0)), 0, a_.heads * dim_ * sizeof(T)); }

  // Normalizes (where the model does) and rotates one head of one token.
  template <typename To>
  void NormAndRotate(const T* x, const void* norm, int64_t row, int64_t token, float scale, To* to) const {
    const int64_t half = dim_ / 2;
    const float* const cos = a_.cos + (a_.first[row] + token) * half;
    const float* const sin = a_.sin + (a_.first[row] + token) * half;
    const T* const weight = static_cast<const T*>(norm);
    Floats inverse = Zero();
    if (weight != nullptr) {
      Floats squares = Zero();
      for (int64_t d = 0; d < dim_; d += Floats::kLanes) {
        const Floats some = LoadSome(x + d, dim_ - d);
        squares = MultiplyAdd(some, some, squares);
      }
      inverse = Set(1.0f / std::sqrt(Sum(squares) / static_cast<float>(dim_) + a_.eps));
    }
    const auto normed = [&](int64_t d, int64_t n) {
      const Floats wide = LoadSome(x + d, n);
      if (weight == nullptr) return wide;
      const Floats w = LoadSome(weight + d, n);
      // Rounded where the model says so; XLA keeps what it rounds only in passing.
      return a_.unit_offset ? Rounded(wide * inverse * (Set(1.0f) + w), x) : Rounded(wide * inverse, x) * w;
    };
    for (int64_t d = 0; d < half; d += Floats::kLanes) {
      const int64_t n = half - d;
      const Floats first = normed(d, n), second = normed(half + d, n), c = LoadSome(cos + d, n), s = LoadSome(sin + d, n);
      StoreSome(to + d, MultiplyAdd(first, c, Zero() - second * s) * Set(scale), n);
      StoreSome(to + half + d, MultiplyAdd(second, c, first * s) * Set(scale), n);
    }
  }

  // The rotated and scaled queries of a group, [group, D].
  void PrepareQueries(int64_t row, int64_t token, int64_t head, float* to) const {
    for (int64_t i = 0; i < group_; ++i) {
      NormAndRotate(Projected(row, token, head * group_ + i), a_.q_norm, row, token, a_.scale, to + i * dim_);
    }
  }

  void WriteKeyAndValue(int64_t row, int64_t token, int64_t head) const {
    const int64_t place = Place(row, Position(row, token), head);
    NormAndRotate(Projected(row, token, a_.heads + head), a_.k_norm, row, token, 1.0f, keys_ + place);
    std::memcpy(values_ + place, Projected(row, token, a_.heads + a_.kv_heads + head), dim_ * sizeof(T));
  }

  // Where the queries of a group are, [N, group, D] for each key head.
  float* QueriesAt(int64_t row, int64_t head, int64_t token) const {
    return queries_ + (head * a_.places + a_.first[row] + token) * group_ * dim_;
  }

  void Prepare(int64_t row, int64_t token) const {
    if (token >= a_.lengths[row]) return ClearOut(row, token);
    for (int64_t head = 0; head < a_.kv_heads; ++head) {
      PrepareQueries(row, token, head, QueriesAt(row, head, token));
      WriteKeyAndValue(row, token, head);
    }
  }

  bool Compute(int64_t task) const {
    const Span& span = *(std::upper_bound(spans_, spans_ + count_, task, [](int64_t t, const Span& s) { return t < s.first_task; }) - 1);
    const int64_t parts = split_ ? span.segments : 1;
    const int64_t head = (task - span.first_task) / parts, part = (task - span.first_task) % parts;
    const int64_t own = alone_ ? group_ * dim_ : 0;
    float* const memory = static_cast<float*>(
        ThreadBytes((PartialFloats() + kPiece * dim_ + task_rows_ * (kWeightStride + 2) + own) * sizeof(float)));
    if (memory == nullptr) return false;
    Work work;
    work.keys = memory;
    work.weights = work.keys + kPiece * dim_;
    work.running = PartialAt(work.weights + task_rows_ * kWeightStride);
    work.shares = reinterpret_cast<Shares*>(work.running.out + PartialFloats());
    if (alone_) {
      work.queries = reinterpret_cast<float*>(work.shares + task_rows_);
      PrepareQueries(span.row, 0, head, work.queries);
      // Only the last segment has the token's own key.
      if (part == parts - 1) WriteKeyAndValue(span.row, 0, head);
    } else {
      work.queries = QueriesAt(span.row, head, span.first);
    }
    const int64_t rows = span.tokens * group_;
    if (parts == 1) {
      work.running.Clear(rows, stride_);
      for (int64_t i = 0; i < span.segments; ++i) AddSegment(span, head, span.segment + i, work);
      Finish(span, head, work.running);
      return true;
    }
    float* const partials = partials_ + (span.first_task + head * parts) * PartialFloats();
    work.running = PartialAt(partials + part * PartialFloats());
    work.running.Clear(rows, stride_);
    AddSegment(span, head, span.segment + part, work);
    // Who ends last merges them all.
    if (open_[(&span - spans_) * a_.kv_heads + head].fetch_sub(1, std::memory_order_acq_rel) != 1) return true;
    const Partial merged = PartialAt(partials);
    for (int64_t i = 1; i < parts; ++i) {
      const Partial next = PartialAt(partials + i * PartialFloats());
      for (int64_t row = 0; row < rows; ++row) {
        if (next.totals[row] == 0) continue;  // this row sees nothing of the segment
        const Shares shares = merged.Join(row, next.peaks[row], next.totals[row]);
        float* const out = merged.out + row * stride_;
        for (int64_t d = 0; d < stride_; d += Floats::kLanes) {
          Store(out + d, MultiplyAdd(Load(out + d), Set(shares.kept), Load(next.out + row * stride_ + d) * Set(shares.added)));
        }
      }
    }
    Finish(span, head, merged);
    return true;
  }

  void Finish(const Span& span, int64_t head, const Partial& whole) const {
    for (int64_t row = 0; row < span.tokens * group_; ++row) {
      const Floats total = Set(whole.totals[row]);
      T* const to = OutAt(span.row, span.first + row / group_, head * group_ + row % group_);
      for (int64_t d = 0; d < dim_; d += Floats::kLanes) StoreSome(to + d, Load(whole.out + row * stride_ + d) / total, dim_ - d);
    }
  }

  // Joins a segment to what is running.
  void AddSegment(const Span& span, int64_t head, int64_t segment, Work& work) const {
    const int64_t base = segment * kSegment;
    // Of each token, the keys of the segment that it sees; positions rise, so tokens that see any follow each other.
    const auto low = [&](int64_t token) {
      return std::clamp<int64_t>(FirstSeen(Position(span.row, span.first + token)) - base, 0, kSegment);
    };
    const auto high = [&](int64_t token) { return std::clamp<int64_t>(Position(span.row, span.first + token) + 1 - base, 0, kSegment); };
    int64_t begin = 0, end = span.tokens;
    while (begin < end && high(begin) == 0) ++begin;
    while (begin < end && low(end - 1) == kSegment) --end;
    if (begin == end) return;
    const int64_t first = low(begin), last = high(end - 1);

    // Places beside those that are seen are computed from a seen key and masked.
    const int64_t around = first / kPiece * kPiece, ceiling = DividedUp(last, kPiece) * kPiece;
    for (int64_t key = first; key < last;) {
      int64_t place = Place(span.row, base + key, head);
      const int64_t stop = std::min(last, key + a_.block_size - ((base + key) & (a_.block_size - 1)));
      for (; key < stop; ++key, place += dim_) work.places[key] = place;
    }
    std::fill(work.places + around, work.places + first, work.places[first]);
    std::fill(work.places + last, work.places + ceiling + kAhead, work.places[last - 1]);

    int64_t from = begin, to = begin;
    for (int64_t piece = around; piece < last; piece += kPiece) {
      while (from < end && high(from) <= piece) ++from;
      to = std::max(to, from);
      while (to < end && low(to) < piece + kPiece) ++to;
      if (from == to) continue;
      const int64_t count = std::min<int64_t>(kPiece, DividedUp(last - piece, Floats::kLanes) * Floats::kLanes);
      // Meanwhile comes what is read next: the keys after these, or the first values.
      const T* const next = piece + kPiece < last ? keys_ : values_;
      Transpose(work.places + piece, count, next, work.places + (piece + kPiece < last ? piece + kPiece : around), work.keys);
      const float* const queries = work.queries + from * group_ * dim_;
      float* const weights = work.weights + from * group_ * kWeightStride + piece;
      ForTiles((to - from) * group_, [&]<int R>(int64_t row) {
        constexpr int N = Across(R);
        for (int64_t key = 0; key < count; key += N * Floats::kLanes) {
          Scores<R, N>(queries + row * dim_, dim_, work.keys + key, weights + row * kWeightStride + key);
        }
      });
    }

    ForTiles((end - begin) * group_, [&]<int R>(int64_t tile) {
      const int64_t row = begin * group_ + tile;
      const int64_t lowest = low(row / group_), highest = high((row + R - 1) / group_);
      for (int64_t i = row; i < row + R; ++i) Softmax(low(i / group_), high(i / group_), lowest, highest, i, work);
      const float* const weights = work.weights + row * kWeightStride;
      float* const out = work.running.out + row * stride_;
      int64_t d = 0;
      const auto add = [&]<int N>() {
        for (; d + N * Floats::kLanes <= dim_ || (N == 1 && d < dim_); d += N * Floats::kLanes) {
          AddValues<R, N>(weights, values_ + d, work.places, lowest, highest, work.shares + row, out + d, stride_, dim_ - d);
        }
      };
      constexpr int N = Across(R);
      add.template operator()<N>();
      if constexpr (N > 2) add.template operator()<2>();
      if constexpr (N > 1) add.template operator()<1>();
    });
  }

  // `out` [D, kPiece] gets `count` keys, while as much of `next` comes into the cache.
  void Transpose(const int64_t* places, int64_t count, const T* next, const int64_t* next_places, float* out) const {
    constexpr int64_t kLine = 64 / sizeof(T);
    const T* rows[kPiece];
    for (int64_t i = 0; i < count; ++i) rows[i] = keys_ + places[i];
    for (int64_t i = 0; i < count; i += Floats::kLanes) {
      for (int64_t d = 0; d < dim_; d += 4) {
        if (d % kLine == 0) {
          for (int64_t j = i; j < i + Floats::kLanes; ++j) Prefetch(next + next_places[j] + d);
        }
        TransposeFour(rows + i, d, out + d * kPiece + i, kPiece);
      }
    }
  }

  // From scores to weights of the keys in [low, high), and 0 for the others in [lowest, highest).
  void Softmax(int64_t low, int64_t high, int64_t lowest, int64_t highest, int64_t row, Work& work) const {
    constexpr int kLanes = Floats::kLanes;
    float* const weights = work.weights + row * kWeightStride;
    const int64_t start = low / kLanes * kLanes, stop = DividedUp(high, kLanes) * kLanes;
    const auto seen = [&](int64_t key) { return Between(static_cast<int>(low - key), static_cast<int>(high - key)); };
    Floats peaks = Set(kMasked);
    for (int64_t key = start; key < stop; key += kLanes) {
      Floats score = Load(weights + key);
      if (a_.softcap != 0) {
        score = Tanh(score * Set(1.0f / a_.softcap)) * Set(a_.softcap);
        Store(weights + key, score);
      }
      peaks = Max(Select(seen(key), score, Set(kMasked)), peaks);
    }
    const float peak = MaxOf(peaks);
    Floats totals = Zero();
    for (int64_t key = start; key < stop; key += kLanes) {
      const Floats weight = Select(seen(key), Exp(Load(weights + key) - Set(peak)), Zero());
      Store(weights + key, weight);
      totals = totals + weight;
    }
    if (lowest < start) std::fill(weights + lowest, weights + start, 0.0f);
    if (highest > stop) std::fill(weights + stop, weights + highest, 0.0f);
    work.shares[row] = work.running.Join(row, peak, Sum(totals));
  }

  const AttentionArgs& a_;
  const int64_t dim_;
  const int64_t stride_;  // of a row of float32 results: D, in whole vectors
  const int64_t group_;   // query heads of a key head
  const int64_t tokens_;  // of a span
  const int64_t task_rows_;
  const T* const qkv_;
  T* const keys_;
  T* const values_;
  T* const out_;

  bool split_ = false;  // whether segments are tasks of their own
  bool alone_ = false;  // whether rows have one token each, which is then prepared where it is used
  float* queries_ = nullptr;
  float* partials_ = nullptr;
  Span* spans_ = nullptr;
  std::atomic<int32_t>* open_ = nullptr;
  int64_t count_ = 0;
};

// Whether there was memory for it.
inline bool Attend(const AttentionArgs& args, Pool& pool) {
  return args.bf16 ? PagedAttention<Bf16>(args).Run(pool) : PagedAttention<float>(args).Run(pool);
}

}  // namespace
