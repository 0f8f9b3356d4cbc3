#include "scratch.h"

#include <cstdlib>
#include <mutex>
#include <utility>

namespace xlaserve {
namespace {

std::mutex& Lock() {
  static std::mutex* const lock = new std::mutex;
  return *lock;
}

std::vector<Buffer>& Left() {
  static std::vector<Buffer>* const left = new std::vector<Buffer>;
  return *left;
}

}  // namespace

Buffer::Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

void* Buffer::Bytes(size_t bytes) {
  if (bytes > size_) {
    std::free(data_);
    size_ = (bytes + 4095) / 4096 * 4096;
    data_ = std::aligned_alloc(64, size_);
    if (data_ == nullptr) size_ = 0;
  }
  return data_;
}

CallBuffer::CallBuffer(size_t bytes) {
  {
    const std::lock_guard<std::mutex> held(Lock());
    if (!Left().empty()) {
      buffer_ = std::move(Left().back());
      Left().pop_back();
    }
  }
  data_ = buffer_.Bytes(bytes);
}

CallBuffer::~CallBuffer() {
  const std::lock_guard<std::mutex> held(Lock());
  Left().push_back(std::move(buffer_));
}

void* ThreadBytes(size_t bytes) {
  static thread_local Buffer buffer;
  return buffer.Bytes(bytes);
}

}  // namespace xlaserve
