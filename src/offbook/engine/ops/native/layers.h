// The operations between the linear layers: norms, gates, rotary positions and the loss.

#pragma once

#include "threads.h"

namespace {

// y = x / rms(x) * weight, and scale = 1 / rms(x), where rms is the root mean square of a row.
template <class E>
void rms_norm(const E* x, const E* weight, E* y, float* scale, int64_t rows, int64_t width,
              float eps, int64_t threads) {
  in_parallel(rows, rows_of_task(width), threads, [=](int64_t row) {
    Floats squares = {};
    for (int64_t i = 0; i < width; i += LANES) {
      Floats v = load(x + row * width + i);
      squares += v * v;
    }
    float s = scale[row] = 1 / __builtin_sqrtf(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
      store(y + row * width + i, load(x + row * width + i) * s * load(weight + i));
  });
}

// The gradient of x.
template <class E>
void rms_norm_backward(const E* dy, const E* x, const E* weight, const float* scale, E* dx,
                       int64_t rows, int64_t width, int64_t threads) {
  in_parallel(rows, rows_of_task(width), threads, [=](int64_t row) {
    Floats along = {};
    for (int64_t i = 0; i < width; i += LANES)
      along += load(dy + row * width + i) * load(weight + i) * load(x + row * width + i);
    float s = scale[row], share = sum(along) * s * s / width;  // the scale depends on x
    for (int64_t i = 0; i < width; i += LANES) {
      Floats of_dy = load(dy + row * width + i) * load(weight + i);
      store(dx + row * width + i, (of_dy - load(x + row * width + i) * share) * s);
    }
  });
}

// y = silu(gate) up
template <class E>
void swiglu(const E* gate, const E* up, E* y, int64_t count, int64_t threads) {
  in_parallel(count / LANES, rows_of_task(LANES), threads, [=](int64_t vector) {
    int64_t i = vector * LANES;
    Floats g = load(gate + i);
    store(y + i, g * sigmoid(g) * load(up + i));
  });
}

// The gradients of gate and up.
template <class E>
void swiglu_backward(const E* dy, const E* gate, const E* up, E* dgate, E* dup, int64_t count,
                     int64_t threads) {
  in_parallel(count / LANES, rows_of_task(LANES), threads, [=](int64_t vector) {
    int64_t i = vector * LANES;
    Floats g = load(gate + i), d = load(dy + i), s = sigmoid(g);
    store(dup + i, d * g * s);
    store(dgate + i, d * load(up + i) * s * (1.0f + g * (1.0f - s)));
  });
}

// Rotary positions: rotates the two halves of every head by the token's angles; `sign` is 1, or -1
// for the backward pass.
template <class E>
void rotate(const E* x, const E* cosines, const E* sines, E* y, int64_t tokens, int64_t heads,
            int64_t width, float sign, int64_t threads) {
  int64_t half = width / 2;
  in_parallel(tokens, rows_of_task(heads * width), threads, [=](int64_t token) {
    for (int64_t head = 0; head < heads; head++)
      for (int64_t d = 0; d < half; d += LANES) {
        const E *of_cos = cosines + token * width + d, *of_sin = sines + token * width + d;
        int64_t at = (token * heads + head) * width + d;
        Floats low = load(x + at), high = load(x + at + half);
        store(y + at, low * load(of_cos) - high * load(of_sin) * sign);
        store(y + at + half, high * load(of_cos + half) + low * load(of_sin + half) * sign);
      }
  });
}

// The cross-entropy of every row. The gradient, probabilities minus one at the target, overwrites
// the logits.
template <class E>
void cross_entropy(E* logits, const int64_t* targets, float* loss, int64_t rows, int64_t width,
                   int64_t threads) {
  in_parallel(rows, rows_of_task(width), threads, [=](int64_t row) {
    E* of_row = logits + row * width;
    Floats most = load(of_row), total = {};
    for (int64_t i = LANES; i < width; i += LANES) most = larger(load(of_row + i), most);
    float peak = largest(most);
    for (int64_t i = 0; i < width; i += LANES) total += exp(load(of_row + i) - peak);
    float whole = sum(total);
    int64_t block = targets[row] / LANES * LANES, lane = targets[row] % LANES;
    loss[row] = __builtin_logf(whole) + peak - load(of_row + block)[lane];
    for (int64_t i = 0; i < width; i += LANES) {
      Floats p = exp(load(of_row + i) - peak) / whole;
      if (i == block) p[lane] -= 1;
      store(of_row + i, p);
    }
  });
}

}  // namespace
