// Memory that kernels reuse from call to call: after the first calls nothing is allocated.

#ifndef XLASERVE_KERNELS_CPU_SCRATCH_H_
#define XLASERVE_KERNELS_CPU_SCRATCH_H_

#include <cstddef>
#include <vector>

namespace xlaserve {

// Bytes at an address that is a multiple of 64. What they hold is undefined.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  // At least so many bytes, or null where there is no memory.
  void* Bytes(size_t bytes);

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A buffer for the duration of one call, taken from those that earlier calls have left.
class CallBuffer {
 public:
  explicit CallBuffer(size_t bytes);
  ~CallBuffer();
  CallBuffer(const CallBuffer&) = delete;
  CallBuffer& operator=(const CallBuffer&) = delete;

  void* data() const { return data_; }

 private:
  Buffer buffer_;
  void* data_;
};

// The calling thread's own bytes, until its next call of this; null where there is no memory.
void* ThreadBytes(size_t bytes);

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_SCRATCH_H_
