// What one call of paged attention works on; the shapes are those of the custom call `xlaserve_attention`.

#ifndef XLASERVE_KERNELS_CPU_ATTENTION_ARGS_H_
#define XLASERVE_KERNELS_CPU_ATTENTION_ARGS_H_

#include <cstdint>

namespace xlaserve {

struct AttentionArgs {
  bool bf16;  // whether qkv, caches, norms and out are bfloat16; else float32

  int64_t rows;        // S
  int64_t places;      // N, room for tokens: S times L, or what all rows share
  int64_t length;      // L, most tokens of a row; N where the rows share it
  int64_t heads;       // H
  int64_t kv_heads;    // KH
  int64_t head_dim;    // D
  int64_t block_size;  // keys of a block, a power of two
  int64_t width;       // P, blocks of a row's table

  const void* qkv;              // [N, (H + 2 KH) D]
  const float* cos;             // [N, D / 2]
  const float* sin;             // [N, D / 2]
  void* keys;                   // [blocks, KH, D, block_size], written in place
  void* values;                 // [blocks, KH, block_size, D], written in place
  const int32_t* block_tables;  // [S, P]
  const int32_t* positions;     // [N]; those of a row's real tokens follow each other
  const int32_t* lengths;       // [S], real tokens of a row
  const int64_t* first;         // [S], rising: the place of a row's first token
  const void* q_norm;           // [D], or null
  const void* k_norm;           // [D], or null
  void* out;                    // [N, H D]

  float scale;
  int64_t window;  // keys that a query sees at most, its own included; 0: all
  float softcap;   // 0: none
  float eps;
  bool unit_offset;
};

}  // namespace xlaserve

#endif  // XLASERVE_KERNELS_CPU_ATTENTION_ARGS_H_
