// The custom call `xlaserve_chain`: linear layers and attention one after the other in a single call, as kernels/chain.py writes them down.
// Between two calls of their own, XLA takes some microseconds in which no core reads weights; a decode step has 150 of them.

#include <algorithm>
#include <bit>
#include <cstdint>
#include <string>

#include "calls.h"
#include "pages.h"
#include "xla/ffi/api/ffi.h"

namespace xlaserve {
namespace {

namespace ffi = ::xla::ffi;

ffi::Error Wrong(const std::string& what) { return ffi::Error::InvalidArgument("xlaserve_chain: " + what); }

constexpr int64_t kLinear = 0, kAttention = 1;              // what a step is
constexpr int64_t kOperand = 0, kResult = 1, kScratch = 2;  // where a value lies

// An operand, a result or part of the scratch memory, as the functions of calls.h take it.
class Place {
 public:
  Place(ffi::DataType type, void* data, const int64_t* dims, int64_t rank) {
    buffer_.struct_size = XLA_FFI_Buffer_STRUCT_SIZE;
    buffer_.extension_start = nullptr;
    buffer_.dtype = static_cast<XLA_FFI_DataType>(type);
    buffer_.data = data;
    buffer_.rank = rank;
    buffer_.dims = const_cast<int64_t*>(dims);
  }
  explicit Place(const ffi::AnyBuffer& b) : Place(b.element_type(), b.untyped_data(), b.dimensions().begin(), b.dimensions().size()) {}

  ffi::AnyBuffer buffer() const { return ffi::AnyBuffer(&buffer_); }

 private:
  XLA_FFI_Buffer buffer_;
};

// The numbers of the steps, read one after the other.
class Reader {
 public:
  explicit Reader(ffi::Span<const int64_t> numbers) : at_(numbers.begin()), end_(numbers.end()) {}

  bool done() const { return at_ == end_; }
  bool ended_early() const { return short_; }
  int64_t Next() { return *Take(1); }
  float NextFloat() { return std::bit_cast<float>(static_cast<int32_t>(Next())); }
  ffi::Span<const int64_t> Next(int64_t count) { return {Take(count), static_cast<size_t>(count)}; }

 private:
  const int64_t* Take(int64_t count) {
    static constexpr int64_t kNone[8] = {};
    if (count < 0 || count > 8 || end_ - at_ < count) {
      short_ = true;
      at_ = end_;
      return kNone;
    }
    at_ += count;
    return at_ - count;
  }

  const int64_t* at_;
  const int64_t* end_;
  bool short_ = false;
};

// The operands after the fixed ones, and the values: what steps read and write. Anything that is not there is empty, and noted.
class Values {
 public:
  Values(ffi::RemainingArgs operands, ffi::RemainingRets results, ffi::AnyBuffer scratch, ffi::Span<const int64_t> table)
      : operands_(operands), results_(results), scratch_(scratch), table_(table) {}

  bool wrong() const { return wrong_; }

  Place Operand(int64_t index) {
    if (index < 0) return Absent();
    const auto found = operands_.get<ffi::AnyBuffer>(static_cast<size_t>(index));
    return found.has_value() ? Place(*found) : Missing();
  }

  // Whose dimensions but for the last are those of the first operand; `dims` keeps them.
  Place Value(int64_t number, int64_t (&dims)[8]) {
    if (number < 0) return Absent();
    if (3 * number + 2 >= static_cast<int64_t>(table_.size())) return Missing();
    const int64_t place = table_.begin()[3 * number], index = table_.begin()[3 * number + 1], width = table_.begin()[3 * number + 2];
    if (place == kOperand) return Operand(index);
    if (place == kResult) {
      auto found = index < 0 ? results_.get<ffi::AnyBuffer>(results_.size()) : results_.get<ffi::AnyBuffer>(static_cast<size_t>(index));
      return found.has_value() ? Place(**found) : Missing();
    }
    const auto first = operands_.get<ffi::AnyBuffer>(0);
    if (place != kScratch || !first.has_value()) return Missing();
    const auto given = first->dimensions();
    if (given.size() < 2 || given.size() > 8) return Missing();
    std::copy(given.begin(), given.end(), dims);
    dims[given.size() - 1] = width;
    const Place found(first->element_type(), static_cast<char*>(scratch_.untyped_data()) + index, dims, given.size());
    const auto room = static_cast<int64_t>(scratch_.size_bytes());
    return index >= 0 && index + static_cast<int64_t>(found.buffer().size_bytes()) <= room ? found : Missing();
  }

 private:
  static Place Absent() {
    static constexpr int64_t kEmpty = 0;
    return Place(ffi::F32, nullptr, &kEmpty, 1);
  }
  Place Missing() {
    wrong_ = true;
    return Absent();
  }

  ffi::RemainingArgs operands_;
  ffi::RemainingRets results_;
  ffi::AnyBuffer scratch_;
  ffi::Span<const int64_t> table_;
  bool wrong_ = false;
};

ffi::Error Chain(ffi::AnyBuffer lengths, ffi::AnyBuffer sequences, ffi::AnyBuffer positions, ffi::AnyBuffer block_tables, ffi::AnyBuffer keys,
                 ffi::AnyBuffer cached, ffi::RemainingArgs operands, ffi::Result<ffi::AnyBuffer> new_keys,
                 ffi::Result<ffi::AnyBuffer> new_values, ffi::Result<ffi::AnyBuffer> scratch, ffi::RemainingRets results,
                 ffi::Span<const int64_t> values, ffi::Span<const int64_t> steps) {
  Values all(operands, results, *scratch, values);
  AdviseHugePages(scratch->untyped_data(), scratch->size_bytes());
  Reader reader(steps);
  int64_t first[8], second[8], third[8];
  for (int64_t step = 0; !reader.done(); ++step) {
    const int64_t kind = reader.Next();
    ffi::Error error = ffi::Error::Success();
    if (kind == kLinear) {
      const Place x = all.Value(reader.Next(), first), residual = all.Value(reader.Next(), second), y = all.Value(reader.Next(), third);
      const float eps = reader.NextFloat();
      const bool unit_offset = reader.Next() != 0;
      const auto activation = static_cast<int32_t>(reader.Next());
      const Place weight = all.Operand(reader.Next()), scale = all.Operand(reader.Next()), norm = all.Operand(reader.Next());
      const Place bias = all.Operand(reader.Next());
      const auto at = reader.Next(4);
      const auto shape = reader.Next(reader.Next());
      if (!all.wrong() && !reader.ended_early()) {
        error = Linear(x.buffer(), lengths, weight.buffer(), scale.buffer(), norm.buffer(), bias.buffer(), residual.buffer(), y.buffer(), shape,
                       at, eps, unit_offset, activation);
      }
    } else if (kind == kAttention) {
      const Place qkv = all.Value(reader.Next(), first), out = all.Value(reader.Next(), second);
      const Place cos = all.Operand(reader.Next()), sin = all.Operand(reader.Next());
      const Place q_norm = all.Operand(reader.Next()), k_norm = all.Operand(reader.Next());
      const auto norms_at = reader.Next(2);
      const int64_t layer = reader.Next(), heads = reader.Next();
      const float scale = reader.NextFloat();
      const int64_t window = reader.Next();
      const float softcap = reader.NextFloat(), eps = reader.NextFloat();
      const bool unit_offset = reader.Next() != 0;
      if (!all.wrong() && !reader.ended_early()) {
        error = Attention(qkv.buffer(), cos.buffer(), sin.buffer(), keys, cached, block_tables, positions, sequences, q_norm.buffer(),
                          k_norm.buffer(), out.buffer(), new_keys, new_values, layer, norms_at, heads, scale, window, softcap, eps, unit_offset);
      }
    } else {
      return Wrong("step " + std::to_string(step) + " is none that it knows");
    }
    if (reader.ended_early()) return Wrong("step " + std::to_string(step) + " has too few numbers");
    if (all.wrong()) return Wrong("step " + std::to_string(step) + " is about a value or an operand that is not there");
    if (error.failure()) return error;
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace xlaserve

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(xlaserve_chain, xlaserve::Chain,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::AnyBuffer>()  // lengths
                                  .Arg<xla::ffi::AnyBuffer>()  // sequences
                                  .Arg<xla::ffi::AnyBuffer>()  // positions
                                  .Arg<xla::ffi::AnyBuffer>()  // block_tables
                                  .Arg<xla::ffi::AnyBuffer>()  // keys
                                  .Arg<xla::ffi::AnyBuffer>()  // values
                                  .RemainingArgs()
                                  .Ret<xla::ffi::AnyBuffer>()  // keys
                                  .Ret<xla::ffi::AnyBuffer>()  // values
                                  .Ret<xla::ffi::AnyBuffer>()  // scratch
                                  .RemainingRets()
                                  .Attr<xla::ffi::Span<const int64_t>>("values")
                                  .Attr<xla::ffi::Span<const int64_t>>("steps"));
#pragma GCC visibility pop
