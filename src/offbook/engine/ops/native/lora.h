// The products with the matrices A and B of a LoRA adapter, and the dropout of its input. In
// float32, with B transposed and scaled.

#pragma once

#include "threads.h"

namespace {

// Sums of so many ranks and rows are kept in registers at a time.
constexpr int64_t RANK_MULTIPLE = 8, ROWS_AT_A_TIME = COLUMNS / 2;

// Which elements of a matrix are dropped, so that no mask is stored; engine/dropout.py says how.
// The same on every processor: a word decides on two columns that are HALF apart, however many
// lanes a vector has.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;      // the probability times 65536
  const int64_t* numbers;  // of the token of each row, or null: rows are numbered themselves

  // The first word of a row.
  inline uint32_t first(int64_t row, int64_t width) const {
    return threshold ? (uint32_t)((numbers ? numbers[row] : row) * (width / 2)) : 0;
  }

  // Applies to the vectors of columns i and i + HALF of a row.
  inline void operator()(Floats& low, Floats& high, uint32_t first, int64_t i) const {
    if (!threshold) return;
    uint32_t at = first + (uint32_t)(i / (2 * HALF) * HALF + i % HALF);
    Words w = ((Words)places() + at) ^ (uint32_t)seed;
    w ^= w >> 16;
    w *= 0x7feb352du;
    w ^= (w >> 15) ^ (uint32_t)(seed >> 32);
    w *= 0x846ca68bu;
    w ^= w >> 16;
    low = (Floats)((Words)low & (Words)((w & 0xffff) >= threshold));
    high = (Floats)((Words)high & (Words)((w >> 16) >= threshold));
  }
};

// h = drop(x) a' for M rows.
template <int M, class E>
inline void lora_a_rows(const E* x, const float* a, float* h, int64_t width, int64_t rank,
                        int64_t row, Dropout drop) {
  uint32_t words[M];
  for (int m = 0; m < M; m++) words[m] = drop.first(row + m, width);
  for (int64_t first = 0; first < rank; first += RANK_MULTIPLE) {
    Floats total[M][RANK_MULTIPLE] = {};
    for (int64_t i = 0; i < width; i = next_pair(i)) {
      Floats low[M], high[M];
      for (int m = 0; m < M; m++) {
        low[m] = load(x + (row + m) * width + i);
        high[m] = load(x + (row + m) * width + i + HALF);
        drop(low[m], high[m], words[m], i);
      }
      for (int r = 0; r < RANK_MULTIPLE; r++) {
        const float* of_rank = a + (first + r) * width + i;
        Floats a_low = load(of_rank), a_high = load(of_rank + HALF);
        for (int m = 0; m < M; m++) total[m][r] += low[m] * a_low + high[m] * a_high;
      }
    }
    for (int m = 0; m < M; m++)
      for (int r = 0; r < RANK_MULTIPLE; r++) h[(row + m) * rank + first + r] = sum(total[m][r]);
  }
}

// h = drop(x) a'
template <class E>
void lora_a(const E* x, const float* a, float* h, int64_t rows, int64_t width, int64_t rank,
            Dropout drop, int64_t threads) {
  constexpr int64_t step = ROWS_AT_A_TIME;
  in_parallel((rows + step - 1) / step, rows_of_task(step * width), threads, [=](int64_t i) {
    int64_t row = i * step;
    if (row + step <= rows)
      lora_a_rows<step>(x, a, h, width, rank, row, drop);
    else
      lora_a_rows<1>(x, a, h, width, rank, row, drop);
  });
}

// Adds drop(h b) to two vectors of M rows, at columns i and i + HALF.
template <int M>
inline void add_lora_b(Floats* low, Floats* high, const float* h, const float* b, int64_t width,
                       int64_t rank, int64_t row, int64_t i, Dropout drop) {
  Floats more_low[M] = {}, more_high[M] = {};
  for (int64_t r = 0; r < rank; r++) {
    Floats b_low = load(b + r * width + i), b_high = load(b + r * width + i + HALF);
    for (int m = 0; m < M; m++) {
      more_low[m] += h[(row + m) * rank + r] * b_low;
      more_high[m] += h[(row + m) * rank + r] * b_high;
    }
  }
  for (int m = 0; m < M; m++) {
    drop(more_low[m], more_high[m], drop.first(row + m, width), i);
    low[m] += more_low[m];
    high[m] += more_high[m];
  }
}

// y += drop(h b)
template <class E>
void lora_b(E* y, const float* h, const float* b, int64_t rows, int64_t width, int64_t rank,
            Dropout drop, int64_t threads) {
  in_parallel(rows, rows_of_task(width), threads, [=](int64_t row) {
    for (int64_t i = 0; i < width; i = next_pair(i)) {
      E* at = y + row * width + i;
      Floats low = load(at), high = load(at + HALF);
      add_lora_b<1>(&low, &high, h, b, width, rank, row, i, drop);
      store(at, low);
      store(at + HALF, high);
    }
  });
}

// d += h' drop(x) for M rows.
template <int M, class E>
inline void outer_rows(const E* x, const float* h, float* d, int64_t width, int64_t rank,
                       int64_t row, Dropout drop) {
  uint32_t words[M];
  for (int m = 0; m < M; m++) words[m] = drop.first(row + m, width);
  for (int64_t i = 0; i < width; i = next_pair(i)) {
    Floats low[M], high[M];
    for (int m = 0; m < M; m++) {
      low[m] = load(x + (row + m) * width + i);
      high[m] = load(x + (row + m) * width + i + HALF);
      drop(low[m], high[m], words[m], i);
    }
    for (int64_t r = 0; r < rank; r++) {
      float* of_rank = d + r * width + i;
      Floats d_low = load(of_rank), d_high = load(of_rank + HALF);
      for (int m = 0; m < M; m++) {
        d_low += h[(row + m) * rank + r] * low[m];
        d_high += h[(row + m) * rank + r] * high[m];
      }
      store(of_rank, d_low);
      store(of_rank + HALF, d_high);
    }
  }
}

// What `lora_backward` reads and writes; ops/library.py has the same struct.
template <class E>
struct LoraBackward {
  const E *x, *dy;     // [rows, inputs], [rows, outputs]
  const float *b, *h;  // [rank, outputs], [rows, rank]
  float *dh, *da, *db;
  int64_t rows, inputs, outputs, rank;
  Dropout drop;
  float* workspace;
  int64_t threads;

  // Numbers of the workspace that a thread uses.
  int64_t workspace_size() const { return rank * (inputs + outputs); }
};

// The gradients of h, dh = dy b', of a, da = dh' drop(x), and of b, db = h' dy. The rows are
// divided into as many ranges as there are threads. da and db of a range are added up in its part
// of the workspace; then the parts are summed.
template <class E>
void lora_backward(const LoraBackward<E>& call) {
  const E *x = call.x, *dy = call.dy;
  const float *b = call.b, *h = call.h;
  float *dh = call.dh, *da = call.da, *db = call.db, *workspace = call.workspace;
  int64_t rows = call.rows, inputs = call.inputs, outputs = call.outputs, rank = call.rank;
  int64_t threads = call.threads, of_a = rank * inputs, size = call.workspace_size();
  Dropout drop = call.drop;
  constexpr int64_t block = 2 * COLUMNS;
  Sums sums((rows + block - 1) / block, threads);
  on_threads(threads, sums.tasks, [&](int64_t thread) {
    sums.each(thread, [&](int64_t range, int64_t place) {
      float *own_da = workspace + range * size, *own_db = own_da + of_a;
      if (!place) memset(own_da, 0, size * sizeof(float));
      int64_t row = (sums.start(range) + place) * block;
      if (row + block <= rows) {
        for (int64_t m = row; m < row + block; m += ROWS_AT_A_TIME)
          lora_a_rows<ROWS_AT_A_TIME>(dy, b, dh, outputs, rank, m, Dropout{});
        outer_rows<block>(dy, h, own_db, outputs, rank, row, Dropout{});
        outer_rows<block>(x, dh, own_da, inputs, rank, row, drop);
      } else {
        for (int64_t m = row; m < rows; m++) {
          lora_a_rows<1>(dy, b, dh, outputs, rank, m, Dropout{});
          outer_rows<1>(dy, h, own_db, outputs, rank, m, Dropout{});
          outer_rows<1>(x, dh, own_da, inputs, rank, m, drop);
        }
      }
    });
  });
  int64_t ranges = smaller(sums.tasks, sums.count);  // those with rows
  in_parallel(size / LANES, rows_of_task(LANES * threads), threads, [=](int64_t vector) {
    int64_t i = vector * LANES;
    Floats total = {};
    for (int64_t range = 0; range < ranges; range++) total += load(workspace + range * size + i);
    store(i < of_a ? da + i : db + (i - of_a), total);
  });
}

}  // namespace
