// The narrow products of LoRA adapters, with the dropout of their inputs.

#pragma once

#include <omp.h>

#include "vectors.h"

namespace {

constexpr int64_t RANKS = 8;  // sums of an adapter that are kept in registers at a time,
constexpr int64_t TOGETHER = COLUMNS / 2;  // for so many rows

// Which elements of a matrix are dropped, from its seed and their places alone. Two random 16-bit
// numbers come from each word of a counter, mixed as in Wellons's lowbias32 (2018); the seed enters
// before each of its two multiplications, so that the words of two matrices never meet.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;  // of 65536; 0 where nothing is dropped

  // Applies to two vectors of neighbours, `at` being the place of the first element.
  inline void operator()(Floats& low, Floats& high, int64_t at) const {
    if (!threshold) return;
    Words w = ((Words)places() + (uint32_t)(at / 2)) ^ (uint32_t)seed;
    w ^= w >> 16;
    w *= 0x7feb352du;
    w ^= (w >> 15) ^ (uint32_t)(seed >> 32);
    w *= 0x846ca68bu;
    w ^= w >> 16;
    low = (Floats)((Words)low & (Words)((w & 0xffff) >= threshold));
    high = (Floats)((Words)high & (Words)((w >> 16) >= threshold));
  }
};

// h = drop(x) a'
template <int M, class E>
inline void down_rows(const E* x, const float* a, float* h, int64_t width, int64_t rank,
                      int64_t row, Dropout drop) {
  for (int64_t first = 0; first < rank; first += RANKS) {
    Floats total[M][RANKS] = {};
    for (int64_t i = 0; i < width; i += 2 * LANES) {
      Floats low[M], high[M];
      for (int m = 0; m < M; m++) {
        low[m] = load(x + (row + m) * width + i);
        high[m] = load(x + (row + m) * width + i + LANES);
        drop(low[m], high[m], (row + m) * width + i);
      }
      for (int r = 0; r < RANKS; r++) {
        const float* of_rank = a + (first + r) * width + i;
        Floats a_low = load(of_rank), a_high = load(of_rank + LANES);
        for (int m = 0; m < M; m++) total[m][r] += low[m] * a_low + high[m] * a_high;
      }
    }
    for (int m = 0; m < M; m++)
      for (int r = 0; r < RANKS; r++) h[(row + m) * rank + first + r] = sum(total[m][r]);
  }
}

template <class E>
void down(const E* x, const float* a, float* h, int64_t rows, int64_t width, int64_t rank,
          uint64_t seed, uint32_t threshold) {
  Dropout drop{seed, threshold};
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row += TOGETHER) {
    if (row + TOGETHER <= rows)
      down_rows<TOGETHER>(x, a, h, width, rank, row, drop);
    else
      down_rows<1>(x, a, h, width, rank, row, drop);
  }
}

// Adds drop(h a) to two vectors of M rows, which begin at column i.
template <int M>
inline void add_adapter(Floats* low, Floats* high, const float* h, const float* a, int64_t width,
                        int64_t rank, int64_t row, int64_t i, Dropout drop) {
  Floats more_low[M] = {}, more_high[M] = {};
  for (int64_t r = 0; r < rank; r++) {
    Floats a_low = load(a + r * width + i), a_high = load(a + r * width + i + LANES);
    for (int m = 0; m < M; m++) {
      more_low[m] += h[(row + m) * rank + r] * a_low;
      more_high[m] += h[(row + m) * rank + r] * a_high;
    }
  }
  for (int m = 0; m < M; m++) {
    drop(more_low[m], more_high[m], (row + m) * width + i);
    low[m] += more_low[m];
    high[m] += more_high[m];
  }
}

// y += drop(h a)
template <class E>
void up(E* y, const float* h, const float* a, int64_t rows, int64_t width, int64_t rank,
        uint64_t seed, uint32_t threshold) {
  Dropout drop{seed, threshold};
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t i = 0; i < width; i += 2 * LANES) {
      E* at = y + row * width + i;
      Floats low = load(at), high = load(at + LANES);
      add_adapter<1>(&low, &high, h, a, width, rank, row, i, drop);
      store(at, low);
      store(at + LANES, high);
    }
}

// d += h' drop(x)
template <int M, class E>
inline void outer_rows(const E* x, const float* h, float* d, int64_t width, int64_t rank,
                       int64_t row, Dropout drop) {
  for (int64_t i = 0; i < width; i += 2 * LANES) {
    Floats low[M], high[M];
    for (int m = 0; m < M; m++) {
      low[m] = load(x + (row + m) * width + i);
      high[m] = load(x + (row + m) * width + i + LANES);
      drop(low[m], high[m], (row + m) * width + i);
    }
    for (int64_t r = 0; r < rank; r++) {
      float* of_rank = d + r * width + i;
      Floats d_low = load(of_rank), d_high = load(of_rank + LANES);
      for (int m = 0; m < M; m++) {
        d_low += h[(row + m) * rank + r] * low[m];
        d_high += h[(row + m) * rank + r] * high[m];
      }
      store(of_rank, d_low);
      store(of_rank + LANES, d_high);
    }
  }
}

// The gradients of h, dh = dy b', of a, da = dh' drop(x), and of b, db = h' dy. Each thread adds up
// its own rows, in a scratch [threads, rank, inputs + outputs].
template <class E>
void adapter_backward(const E* x, const E* dy, const float* b, const float* h, float* dh, float* da,
                      float* db, int64_t rows, int64_t inputs, int64_t outputs, int64_t rank,
                      uint64_t seed, uint32_t threshold, float* scratch, int64_t threads) {
  Dropout drop{seed, threshold};
  constexpr int64_t block = 2 * COLUMNS;
  int64_t of_a = rank * inputs, size = of_a + rank * outputs;
#pragma omp parallel num_threads(threads)
  {
    float *own_da = scratch + omp_get_thread_num() * size, *own_db = own_da + of_a;
    memset(own_da, 0, size * sizeof(float));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row += block) {
      if (row + block <= rows) {
        for (int64_t m = row; m < row + block; m += TOGETHER)
          down_rows<TOGETHER>(dy, b, dh, outputs, rank, m, Dropout{});
        outer_rows<block>(dy, h, own_db, outputs, rank, row, Dropout{});
        outer_rows<block>(x, dh, own_da, inputs, rank, row, drop);
      } else {
        for (int64_t m = row; m < rows; m++) {
          down_rows<1>(dy, b, dh, outputs, rank, m, Dropout{});
          outer_rows<1>(dy, h, own_db, outputs, rank, m, Dropout{});
          outer_rows<1>(x, dh, own_da, inputs, rank, m, drop);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < size; i += LANES) {
      Floats total = {};
      for (int64_t thread = 0; thread < threads; thread++) total += load(scratch + thread * size + i);
      store(i < of_a ? da + i : db + (i - of_a), total);
    }
  }
}

}  // namespace
