// Fused loops for processors. PyTorch takes one operation at a time, and each reads and writes
// memory; here what belongs together is one pass. This is what Python calls: kernels.py documents
// what each function computes; every sum is taken in float32.
//
// Row widths are multiples of 32. OpenMP's threads are PyTorch's own: the library is loaded beside
// its runtime.

#include "attention.h"
#include "layers.h"
#include "linear.h"

// Whether `linear` is faster than oneDNN: but for processors with tiles (AMX), which that uses.
extern "C" int32_t multiplies_bf16() {
#if defined(__x86_64__) && !defined(__AMX_BF16__)
  return 1;
#else
  return 0;
#endif
}

#define EXPORT(E, suffix)                                                                         \
  extern "C" {                                                                                    \
  void down_##suffix(const E* x, const float* a, float* h, int64_t rows, int64_t width,           \
                     int64_t rank, uint64_t seed, uint32_t threshold) {                           \
    down(x, a, h, rows, width, rank, seed, threshold);                                            \
  }                                                                                               \
  void up_##suffix(E* y, const float* h, const float* a, int64_t rows, int64_t width,             \
                   int64_t rank, uint64_t seed, uint32_t threshold) {                             \
    up(y, h, a, rows, width, rank, seed, threshold);                                              \
  }                                                                                               \
  void adapter_backward_##suffix(const E* x, const E* dy, const float* b, const float* h,          \
                                 float* dh, float* da, float* db, int64_t rows, int64_t inputs,    \
                                 int64_t outputs, int64_t rank, uint64_t seed,                     \
                                 uint32_t threshold, float* scratch, int64_t threads) {            \
    adapter_backward(x, dy, b, h, dh, da, db, rows, inputs, outputs, rank, seed, threshold,        \
                     scratch, threads);                                                            \
  }                                                                                               \
  void linear_##suffix(E* y, const Term<E>* terms, int64_t count, const E* bias, int64_t rows,     \
                       int64_t width, float* scratch, int64_t scratch_size, int64_t threads) {     \
    linear(y, terms, count, bias, rows, width, scratch, scratch_size, threads);                    \
  }                                                                                               \
  void rms_norm_##suffix(const E* x, const E* w, E* y, float* s, int64_t rows, int64_t width,     \
                         float eps) {                                                             \
    rms_norm(x, w, y, s, rows, width, eps);                                                       \
  }                                                                                               \
  void rms_norm_backward_##suffix(const E* dy, const E* x, const E* w, const float* s, E* dx,     \
                                  int64_t rows, int64_t width) {                                  \
    rms_norm_backward(dy, x, w, s, dx, rows, width);                                              \
  }                                                                                               \
  void swiglu_##suffix(const E* gate, const E* up, E* y, int64_t count) {                         \
    swiglu(gate, up, y, count);                                                                   \
  }                                                                                               \
  void swiglu_backward_##suffix(const E* dy, const E* gate, const E* up, E* dgate, E* dup,        \
                                int64_t count) {                                                  \
    swiglu_backward(dy, gate, up, dgate, dup, count);                                             \
  }                                                                                               \
  void rotate_##suffix(const E* x, const E* cosines, const E* sines, E* y, int64_t tokens,         \
                       int64_t heads, int64_t width, float sign) {                                \
    rotate(x, cosines, sines, y, tokens, heads, width, sign);                                     \
  }                                                                                               \
  void cross_entropy_##suffix(E* logits, const int64_t* targets, float* loss, int64_t rows,       \
                              int64_t width) {                                                    \
    cross_entropy(logits, targets, loss, rows, width);                                            \
  }                                                                                               \
  void attend_##suffix(const E* q, const E* k, const E* v, const E* past_k, const E* past_v, E* o, \
                       const int64_t* starts, int64_t rows, const Heads* heads, float* scratch,   \
                       int64_t longest, int64_t scratch_size, int64_t threads) {                  \
    attend<E>({q, k, v, past_k, past_v}, o, starts, rows, *heads, scratch, longest, scratch_size,  \
              threads);                                                                           \
  }                                                                                               \
  void attend_backward_##suffix(const E* q, const E* k, const E* v, const E* past_k,              \
                                const E* past_v, const E* grad, E* dq, E* dk, E* dv,              \
                                float* dpast_k, float* dpast_v, const int64_t* starts,            \
                                int64_t rows, const Heads* heads, float* scratch,                 \
                                int64_t longest, int64_t scratch_size, int64_t threads) {         \
    attend_backward<E>({q, k, v, past_k, past_v}, grad, dq, dk, dv, dpast_k, dpast_v, starts,     \
                       rows, *heads, scratch, longest, scratch_size, threads);                    \
  }                                                                                               \
  }

EXPORT(bfloat16, bf16)
EXPORT(float, f32)
