// The custom call `xlaserve_copy_blocks`: KV blocks copied where they lie, in all layers of every array. XLA:CPU has no bfloat16 scatter in
// older versions and goes through a float32 copy of every array, whatever is to be copied.

#include <cstdint>
#include <cstring>
#include <string>

#include "pool.h"
#include "xla/ffi/api/ffi.h"

namespace xlaserve {
namespace {

namespace ffi = ::xla::ffi;

ffi::Error Wrong(const std::string& what) { return ffi::Error::InvalidArgument("xlaserve_copy_blocks: " + what); }

ffi::Error CopyBlocks(ffi::Buffer<ffi::S32> source, ffi::Buffer<ffi::S32> target, ffi::RemainingArgs caches, ffi::RemainingRets results) {
  const auto count = static_cast<int64_t>(source.element_count());
  if (static_cast<int64_t>(target.element_count()) != count) return Wrong("source and target must be as many");
  if (caches.size() != results.size()) return Wrong("each cache must have one result");
  int64_t layers = 0;
  for (size_t i = 0; i < caches.size(); ++i) {
    const auto cache = caches.get<ffi::AnyBuffer>(i);
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!cache.has_value()) return cache.error();
    if (!result.has_value()) return result.error();
    if (cache->untyped_data() != (*result)->untyped_data()) return Wrong("caches are to be updated in place, but results are elsewhere");
    if (cache->dimensions().size() < 2) return Wrong("a cache must have layers and blocks");
    const int64_t blocks = cache->dimensions()[1];
    layers += cache->dimensions()[0];
    for (int64_t j = 0; j < count; ++j) {
      for (const int32_t block : {source.typed_data()[j], target.typed_data()[j]}) {
        if (block < 0 || block >= blocks) return Wrong("there is no block " + std::to_string(block) + " of " + std::to_string(blocks));
      }
    }
  }
  if (count == 0) return ffi::Error::Success();
  Pool::Get().Run(layers, [&](int64_t layer) {
    size_t i = 0;
    auto cache = caches.get<ffi::AnyBuffer>(i);
    for (; layer >= cache->dimensions()[0]; cache = caches.get<ffi::AnyBuffer>(++i)) layer -= cache->dimensions()[0];
    const size_t layer_bytes = cache->size_bytes() / cache->dimensions()[0], bytes = layer_bytes / cache->dimensions()[1];
    char* const data = static_cast<char*>(cache->untyped_data()) + layer * layer_bytes;
    for (int64_t j = 0; j < count; ++j) {
      const int32_t from = source.typed_data()[j], to = target.typed_data()[j];
      if (from != to) std::memcpy(data + to * bytes, data + from * bytes, bytes);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace xlaserve

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(xlaserve_copy_blocks, xlaserve::CopyBlocks,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()  // source
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()  // target
                                  .RemainingArgs()
                                  .RemainingRets());
#pragma GCC visibility pop
