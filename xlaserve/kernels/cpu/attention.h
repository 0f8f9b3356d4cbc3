// Paged attention of one layer: from the fused projection of queries, keys and values to what the output projection takes.
//
// New keys and values go into their blocks first. Then every query reads its context in segments of 256 keys at fixed places; each segment
// has a softmax of its own, and segments merge in their order (as in FlashAttention, Dao 2022, and Flash-Decoding, 2023). All sums run in
// one order that follows from a query's position alone: what comes out does not depend on the rows beside it, on the number of threads, nor
// on whether a token came in a chunk or alone.
//
// Scores are computed with lanes over keys, which lie side by side in their blocks; sums of values with lanes over the head's numbers. What a
// thread reads it asks for some time before, across segments and tasks: it knows the task that it takes next.
//
// Included once for each instruction set, inside a namespace of its own, after "simd.h".

namespace {

using ::xlaserve::AttentionArgs;
using ::xlaserve::CallBuffer;
using ::xlaserve::Pool;
using ::xlaserve::ThreadBytes;

constexpr int kSegment = 256;
constexpr int kPiece = 64;                    // keys whose scores are computed together
constexpr int kStrips = kSegment / Floats::kLanes;  // a strip: keys that fill a vector
constexpr int kWeightStride = kSegment + 16;  // rows of weights do not fall on the same lines of the cache
constexpr int kTileRows = 6;                  // query rows of a register tile
constexpr int kTaskRows = 96;                 // query rows of a task, where a group of heads has no more
constexpr int kAhead = 4;                     // strips on their way while one is computed with: 2 to 8 are as fast, 16 slower
constexpr float kMasked = -1e30f;

__attribute__((always_inline)) inline void Prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

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

// Calls f.operator()<N>() for the widths from N down to 1.
template <int N, typename F>
inline void ForWidths(const F& f) {
  f.template operator()<N>();
  if constexpr (N > 1) ForWidths<N / 2>(f);
}

// weights[r][0 .. N * lanes) = the products of R queries with N strips of keys, a strip being [D, lanes] with rows that are `stride` apart.
// Meanwhile the strips `ahead` come into the cache, where it is not null.
template <int R, int N, typename T>
inline void Scores(const float* queries, int64_t dim, const T* const* strips, int64_t stride, const T* const* ahead, float* weights) {
  constexpr int kLine = std::max<int>(1, 64 / (Floats::kLanes * sizeof(T)));  // rows of a strip in a line of the cache
  const T* keys[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) keys[n] = strips[n];
  Floats sums[R * N];
#pragma GCC unroll 32
  for (auto& sum : sums) sum = Zero();
  for (int64_t d = 0; d < dim; ++d) {
    Floats k[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) k[n] = Load(keys[n] + d * stride);
    if (ahead != nullptr && d % kLine == 0) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) Prefetch(ahead[n] + d * Floats::kLanes);
    }
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
// A strip of values is [lanes, D]. Meanwhile as much of the strips `ahead` comes into the cache, where it is not null.
template <int R, int N, typename T>
inline void AddValues(const float* weights, const T* const* strips, int64_t dim, int64_t d, int64_t first, int64_t last,
                      const T* const* ahead, const Shares* shares, float* out, int64_t stride) {
  constexpr int kLanes = Floats::kLanes;
  Floats sums[R * N];
#pragma GCC unroll 32
  for (auto& sum : sums) sum = Zero();
  const auto step = [&](int64_t key, const T* values, const T* next, auto load) __attribute__((always_inline)) {
    Floats v[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) v[n] = load(values + n * kLanes);
    if (ahead != nullptr) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        if (n * kLanes * sizeof(T) % 64 == 0) Prefetch(next + n * kLanes);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Floats w = Set(weights[r * kWeightStride + key]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[r * N + n] = MultiplyAdd(w, v[n], sums[r * N + n]);
    }
  };
  const auto all = [&](auto load) __attribute__((always_inline)) {
    for (int64_t key = first; key < last;) {
      const int64_t strip = key / kLanes, stop = std::min(last, (strip + 1) * kLanes);
      int64_t at = key % kLanes * dim + d;
      const T* const values = strips[strip];
      const T* const next = ahead == nullptr ? values : ahead[strip];
      for (; key < stop; ++key, at += dim) step(key, values + at, next + at, load);
    }
  };
  if (N > 1 || dim - d >= kLanes) {
    all([](const T* p) { return Load(p); });
  } else {
    all([&](const T* p) { return LoadFirst(p, static_cast<int>(dim - d)); });
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      float* const at = out + r * stride + n * kLanes;
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
    tasks_ = tasks;
    pool.Run(std::min<int64_t>(tasks, pool.threads()), [&](int64_t) {
      if (!Work()) memory.store(false, std::memory_order_relaxed);
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

  // A segment of keys that a task reads.
  struct Reading {
    const Span* span;
    int64_t head;
    int64_t part;  // of the span's segments
    bool begins;   // whether its task begins with it
    bool ends;
    int64_t first;  // keys of the segment that any token sees
    int64_t last;
    const T* keys[kStrips];
    const T* values[kStrips];
    const T* lines[2 * kStrips + kAhead];  // what the thread reads from here on, strip by strip: keys, values and those of what comes next

    int64_t first_strip() const { return first / Floats::kLanes; }
    int64_t strips() const { return DividedUp(last, Floats::kLanes) - first_strip(); }
  };

  // What a thread computes with.
  struct Memory {
    float* queries;   // [rows, D]
    float* weights;   // [rows, kWeightStride]
    Shares* shares;   // [rows]
    Partial running;  // of all segments so far
    T* gathered;      // [2, kSegment, D], where blocks are smaller than a strip
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

  // Where the keys or values of a head begin, of the block that holds this position.
  int64_t BlockAt(int64_t row, int64_t position, int64_t head) const {
    return (a_.block_tables[row * a_.width + position / a_.block_size] * a_.kv_heads + head) * a_.block_size * dim_;
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
    const int64_t position = Position(row, token), at = position & (a_.block_size - 1), block = BlockAt(row, position, head);
    // Nothing is yet where the result of these queries will be.
    T* const key = OutAt(row, token, head * group_);
    NormAndRotate(Projected(row, token, a_.heads + head), a_.k_norm, row, token, 1.0f, key);
    T* const to = keys_ + block + at;
    for (int64_t d = 0; d < dim_; ++d) to[d * a_.block_size] = key[d];
    std::memcpy(values_ + block + at * dim_, Projected(row, token, a_.heads + a_.kv_heads + head), dim_ * sizeof(T));
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

  // Takes tasks until there are none. Whether there was memory for it.
  bool Work() {
    const int64_t small = a_.block_size < Floats::kLanes ? 2 * kSegment * dim_ * sizeof(T) / sizeof(float) : 0;
    const int64_t own = alone_ ? group_ * dim_ : 0;
    float* const bytes = static_cast<float*>(ThreadBytes((PartialFloats() + task_rows_ * (kWeightStride + 2) + own + small) * sizeof(float)));
    if (bytes == nullptr) return false;
    Memory memory;
    memory.weights = bytes;
    memory.running = PartialAt(memory.weights + task_rows_ * kWeightStride);
    memory.shares = reinterpret_cast<Shares*>(memory.running.out + PartialFloats());
    memory.queries = reinterpret_cast<float*>(memory.shares + task_rows_);
    memory.gathered = reinterpret_cast<T*>(memory.queries + own);

    Reading readings[2];
    Reading *now = &readings[0], *next = &readings[1];
    if (!Take(*now)) return true;
    for (int64_t i = 0; i < std::min<int64_t>(kAhead, 2 * now->strips()); ++i) {
      for (int64_t d = 0; d < dim_ * Floats::kLanes; d += 64 / sizeof(T)) Prefetch(now->lines[i] + d);
    }
    for (bool more = true; more; std::swap(now, next)) {
      more = now->ends ? Take(*next) : Follow(*now, *next);
      const int64_t mine = 2 * now->strips(), others = more ? 2 * next->strips() : 0;
      for (int64_t i = 0; i < kAhead; ++i) now->lines[mine + i] = i < others ? next->lines[i] : now->lines[mine - 1];
      Compute(*now, memory);
    }
    return true;
  }

  // The next task that nobody has taken; false where there is none.
  bool Take(Reading& reading) {
    // The last tokens of a chunk see the most: what is taken at the end, when threads wait for each other, is small.
    const int64_t task = tasks_ - 1 - next_.fetch_add(1, std::memory_order_relaxed);
    if (task < 0) return false;
    const Span* const span = std::upper_bound(spans_, spans_ + count_, task, [](int64_t t, const Span& s) { return t < s.first_task; }) - 1;
    const int64_t parts = split_ ? span->segments : 1;
    reading.span = span;
    reading.head = (task - span->first_task) / parts;
    reading.part = (task - span->first_task) % parts;
    reading.begins = true;
    reading.ends = split_ || span->segments == 1;
    Look(reading);
    return true;
  }

  // The task's segment after this one.
  bool Follow(const Reading& reading, Reading& next) const {
    next.span = reading.span;
    next.head = reading.head;
    next.part = reading.part + 1;
    next.begins = false;
    next.ends = next.part + 1 == next.span->segments;
    Look(next);
    return true;
  }

  // Fills in what a segment's place says.
  void Look(Reading& reading) const {
    constexpr int64_t kLanes = Floats::kLanes;
    const Span& span = *reading.span;
    const int64_t base = (span.segment + reading.part) * kSegment;
    reading.first = std::clamp<int64_t>(FirstSeen(Position(span.row, span.first)) - base, 0, kSegment);
    reading.last = std::clamp<int64_t>(Position(span.row, span.first + span.tokens - 1) + 1 - base, 0, kSegment);
    const int64_t begin = reading.first_strip(), strips = reading.strips();
    for (int64_t i = 0; i < strips; ++i) {
      const int64_t position = base + std::max((begin + i) * kLanes, reading.first), at = position & (a_.block_size - 1) & -kLanes;
      const int64_t block = BlockAt(span.row, position, reading.head);
      reading.keys[begin + i] = keys_ + block + at;
      reading.values[begin + i] = values_ + block + at * dim_;
      reading.lines[i] = keys_ + block + at * dim_;
      reading.lines[strips + i] = values_ + block + at * dim_;
    }
  }

  // Copies a segment from blocks that are smaller than a strip.
  void Gather(Reading& reading, T* keys) const {
    T* const values = keys + kSegment * dim_;
    const int64_t base = (reading.span->segment + reading.part) * kSegment;
    for (int64_t key = reading.first; key < reading.last; ++key) {
      const int64_t at = (base + key) & (a_.block_size - 1), block = BlockAt(reading.span->row, base + key, reading.head);
      for (int64_t d = 0; d < dim_; ++d) keys[d * kSegment + key] = keys_[block + d * a_.block_size + at];
      std::memcpy(values + key * dim_, values_ + block + at * dim_, dim_ * sizeof(T));
    }
    for (int64_t strip = reading.first_strip(); strip < reading.first_strip() + reading.strips(); ++strip) {
      reading.keys[strip] = keys + strip * Floats::kLanes;
      reading.values[strip] = values + strip * Floats::kLanes * dim_;
    }
  }

  void Compute(Reading& reading, Memory& memory) const {
    const Span& span = *reading.span;
    const int64_t head = reading.head, rows = span.tokens * group_;
    float* const partials = partials_ + (span.first_task + head * span.segments) * PartialFloats();
    if (reading.begins) {
      if (alone_) {
        PrepareQueries(span.row, 0, head, memory.queries);
      } else {
        memory.queries = QueriesAt(span.row, head, span.first);
      }
      if (split_) memory.running = PartialAt(partials + reading.part * PartialFloats());
      memory.running.Clear(rows, stride_);
    }
    // Only the last segment has the token's own key.
    if (alone_ && reading.part == span.segments - 1) WriteKeyAndValue(span.row, 0, head);
    AddSegment(reading, memory);
    if (!split_) {
      if (reading.ends) Finish(span, head, memory.running);
      return;
    }
    // Who ends last merges them all.
    if (open_[(&span - spans_) * a_.kv_heads + head].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const Partial merged = PartialAt(partials);
    for (int64_t i = 1; i < span.segments; ++i) {
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
  }

  void Finish(const Span& span, int64_t head, const Partial& whole) const {
    for (int64_t row = 0; row < span.tokens * group_; ++row) {
      const Floats total = Set(whole.totals[row]);
      T* const to = OutAt(span.row, span.first + row / group_, head * group_ + row % group_);
      for (int64_t d = 0; d < dim_; d += Floats::kLanes) StoreSome(to + d, Load(whole.out + row * stride_ + d) / total, dim_ - d);
    }
  }

  // Joins a segment to what is running.
  void AddSegment(Reading& reading, Memory& memory) const {
    const Span& span = *reading.span;
    const int64_t base = (span.segment + reading.part) * kSegment;
    // Of each token, the keys of the segment that it sees; positions rise, so tokens that see any follow each other.
    const auto low = [&](int64_t token) {
      return std::clamp<int64_t>(FirstSeen(Position(span.row, span.first + token)) - base, 0, kSegment);
    };
    const auto high = [&](int64_t token) { return std::clamp<int64_t>(Position(span.row, span.first + token) + 1 - base, 0, kSegment); };
    int64_t begin = 0, end = span.tokens;
    while (begin < end && high(begin) == 0) ++begin;
    while (begin < end && low(end - 1) == kSegment) --end;

    const bool small = a_.block_size < Floats::kLanes;
    if (small) Gather(reading, memory.gathered);
    const int64_t stride = small ? kSegment : a_.block_size;
    constexpr int64_t kEach = kPiece / Floats::kLanes;
    const int64_t first = reading.first_strip(), last = first + reading.strips();
    const T* const* const ahead = reading.lines + kAhead - first;
    int64_t from = begin, to = begin;
    for (int64_t strip = first; strip < last;) {
      const int64_t stop = std::min(last, (strip / kEach + 1) * kEach);
      while (from < end && high(from) <= strip * Floats::kLanes) ++from;
      to = std::max(to, from);
      while (to < end && low(to) < stop * Floats::kLanes) ++to;
      const float* const queries = memory.queries + from * group_ * dim_;
      float* const weights = memory.weights + from * group_ * kWeightStride;
      ForTiles((to - from) * group_, [&]<int R>(int64_t row) {
        int64_t s = strip;
        const auto add = [&]<int N>() {
          for (; s + N <= stop; s += N) {
            Scores<R, N>(queries + row * dim_, dim_, reading.keys + s, stride, row == 0 ? ahead + s : nullptr,
                         weights + row * kWeightStride + s * Floats::kLanes);
          }
        };
        ForWidths<Across(R)>(add);
      });
      strip = stop;
    }

    ForTiles((end - begin) * group_, [&]<int R>(int64_t tile) {
      const int64_t row = begin * group_ + tile;
      const int64_t lowest = low(row / group_), highest = high((row + R - 1) / group_);
      for (int64_t i = row; i < row + R; ++i) Softmax(low(i / group_), high(i / group_), lowest, highest, i, memory);
      const float* const weights = memory.weights + row * kWeightStride;
      float* const out = memory.running.out + row * stride_;
      int64_t d = 0;
      const auto add = [&]<int N>() {
        for (; d + N * Floats::kLanes <= dim_ || (N == 1 && d < dim_); d += N * Floats::kLanes) {
          AddValues<R, N>(weights, reading.values, dim_, d, lowest, highest, tile == 0 ? ahead + reading.strips() : nullptr,
                          memory.shares + row, out + d, stride_);
        }
      };
      ForWidths<Across(R)>(add);
    });
  }

  // From scores to weights of the keys in [low, high), and 0 for the others in [lowest, highest).
  void Softmax(int64_t low, int64_t high, int64_t lowest, int64_t highest, int64_t row, Memory& memory) const {
    constexpr int kLanes = Floats::kLanes;
    float* const weights = memory.weights + row * kWeightStride;
    const int64_t start = low / kLanes * kLanes, stop = DividedUp(high, kLanes) * kLanes;
    // Scores of keys that are not seen are anything. Nearly all vectors have none of them.
    const auto seen = [&](int64_t key, Floats x, Floats other) {
      if (low <= key && key + kLanes <= high) return x;
      return Select(Between(static_cast<int>(low - key), static_cast<int>(high - key)), x, other);
    };
    Floats peaks = Set(kMasked);
    for (int64_t key = start; key < stop; key += kLanes) {
      Floats score = Load(weights + key);
      if (a_.softcap != 0) {
        score = Tanh(score * Set(1.0f / a_.softcap)) * Set(a_.softcap);
        Store(weights + key, score);
      }
      peaks = Max(seen(key, score, Set(kMasked)), peaks);
    }
    const float peak = MaxOf(peaks);
    Floats totals = Zero();
    for (int64_t key = start; key < stop; key += kLanes) {
      const Floats weight = seen(key, Exp(Load(weights + key) - Set(peak)), Zero());
      Store(weights + key, weight);
      totals = totals + weight;
    }
    if (lowest < start) std::fill(weights + lowest, weights + start, 0.0f);
    if (highest > stop) std::fill(weights + stop, weights + highest, 0.0f);
    memory.shares[row] = memory.running.Join(row, peak, Sum(totals));
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
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
};

// Whether there was memory for it.
inline bool Attend(const AttentionArgs& args, Pool& pool) {
  return args.bf16 ? PagedAttention<Bf16>(args).Run(pool) : PagedAttention<float>(args).Run(pool);
}

}  // namespace
