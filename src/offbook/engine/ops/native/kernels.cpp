// Fused kernels for processors. A PyTorch operation reads and writes memory for every step of a
// formula; a kernel does the steps in one pass. These are the functions that ops/kernels.py calls
// and documents. All sums are in float32.
//
// Widths are multiples of WIDTH_MULTIPLE. Where OpenMP threads are used, they are PyTorch's own,
// because PyTorch has loaded the OpenMP runtime before this library.

#include "attention.h"
#include "layers.h"
#include "linear.h"

// What Python needs to know of this library; ops/library.py has the same struct.
struct Facts {
  int64_t width_multiple, rank_multiple;
  int64_t multiplies_bf16;  // whether `linear` is faster than oneDNN in bfloat16
};

extern "C" Facts facts() {
#if defined(__x86_64__) && !defined(__AMX_BF16__)
  return {WIDTH_MULTIPLE, RANK_MULTIPLE, 1};
#else
  return {WIDTH_MULTIPLE, RANK_MULTIPLE, 0};  // AMX, or not x86: oneDNN's product is used
#endif
}

extern "C" int64_t linear_workspace_bytes(int64_t inputs, int64_t itemsize) {
  return linear_workspace(inputs, itemsize);
}

// Whether jobs are for the threads of threads.h, or for OpenMP's, which Clang's code has none of.
extern "C" void use_own_threads(int64_t own) { pool.own = own; }

#define EXPORT(E, suffix)                                                                       \
  extern "C" {                                                                                  \
  void lora_a_##suffix(const E* x, const float* a, float* h, int64_t rows, int64_t width,       \
                       int64_t rank, uint64_t seed, uint32_t threshold, const int64_t* numbers, \
                       int64_t threads) {                                                       \
    lora_a(x, a, h, rows, width, rank, Dropout{seed, threshold, numbers}, threads);             \
  }                                                                                             \
  void lora_b_##suffix(E* y, const float* h, const float* b, int64_t rows, int64_t width,       \
                       int64_t rank, uint64_t seed, uint32_t threshold, const int64_t* numbers, \
                       int64_t threads) {                                                       \
    lora_b(y, h, b, rows, width, rank, Dropout{seed, threshold, numbers}, threads);             \
  }                                                                                             \
  void lora_backward_##suffix(const LoraBackward<E>* call) { lora_backward(*call); }            \
  int64_t lora_workspace_bytes_##suffix(const LoraBackward<E>* call) {                          \
    return call->workspace_size() * sizeof(float);                                              \
  }                                                                                             \
  void linear_##suffix(const Linear<E>* call) { linear(*call); }                                \
  void rms_norm_##suffix(const E* x, const E* w, E* y, float* s, int64_t rows, int64_t width,   \
                         float eps, int64_t threads) {                                          \
    rms_norm(x, w, y, s, rows, width, eps, threads);                                            \
  }                                                                                             \
  void rms_norm_backward_##suffix(const E* dy, const E* x, const E* w, const float* s, E* dx,   \
                                  int64_t rows, int64_t width, int64_t threads) {               \
    rms_norm_backward(dy, x, w, s, dx, rows, width, threads);                                   \
  }                                                                                             \
  void swiglu_##suffix(const E* gate, const E* up, E* y, int64_t count, int64_t threads) {      \
    swiglu(gate, up, y, count, threads);                                                        \
  }                                                                                             \
  void swiglu_backward_##suffix(const E* dy, const E* gate, const E* up, E* dgate, E* dup,      \
                                int64_t count, int64_t threads) {                               \
    swiglu_backward(dy, gate, up, dgate, dup, count, threads);                                  \
  }                                                                                             \
  void rotate_##suffix(const E* x, const E* cosines, const E* sines, E* y, int64_t tokens,      \
                       int64_t heads, int64_t channels, float sign, int64_t threads) {          \
    rotate(x, cosines, sines, y, tokens, heads, channels, sign, threads);                       \
  }                                                                                             \
  void cross_entropy_##suffix(E* logits, const int64_t* targets, float* loss, int64_t rows,     \
                              int64_t width, int64_t threads) {                                 \
    cross_entropy(logits, targets, loss, rows, width, threads);                                 \
  }                                                                                             \
  void attend_##suffix(const Attention<E>* call) { attend(*call); }                             \
  void attend_backward_##suffix(const Attention<E>* call) { attend_backward(*call); }           \
  int64_t attention_workspace_bytes_##suffix(const Attention<E>* call) {                        \
    return Workspace<E>::size(call->most_keys(), call->heads.channels) * sizeof(float);         \
  }                                                                                             \
  }

EXPORT(bfloat16, bf16)
EXPORT(float, f32)
