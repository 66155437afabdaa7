// Matrix products. The inner loop multiplies one word of a with a vector of neighbouring words of
// b. In float32 a word is a number. In bfloat16 it is a pair of numbers that follow each other
// along the dimension that is summed over, so that one instruction multiplies and adds both.

#pragma once

#include "vectors.h"

namespace {

constexpr int ROWS = 6;  // of a tile, whose sums are kept in registers

// How the numbers of a format are laid out as words.
template <class E>
struct Layout;

template <>
struct Layout<float> {
  typedef float Word;
  typedef Floats Vector;
  static constexpr int64_t PAIR = 1;

  static inline Floats add_product(Floats total, float a, Floats b) { return total + a * b; }
  static inline void store_row(Word* to, Floats x) { store(to, x); }
  static inline void store_pair(Word* to, Floats x, Floats) { store(to, x); }
  static inline void copy_pair(Word* to, const float* x, const float*) { store(to, load(x)); }
};

template <>
struct Layout<bfloat16> {
  typedef uint32_t Word;
  typedef Words Vector;
  static constexpr int64_t PAIR = 2;

  static inline Floats add_product(Floats total, uint32_t a, Words b) {
#ifdef __AVX512BF16__
    return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
#else
    Words both = Words{} + a;
    total += (Floats)(both << 16) * (Floats)(b << 16);
    return total + (Floats)(both & 0xffff0000u) * (Floats)(b & 0xffff0000u);
#endif
  }

  // Packs neighbours in a row into one word each.
  static inline void store_row(Word* to, Floats x) { store((bfloat16*)to, x); }

  // Packs the numbers at the same place of two rows into one word each.
  static inline void store_pair(Word* to, Floats x, Floats y) {
    bfloat16 low[LANES], high[LANES];
    store(low, x);
    store(high, y);
    copy_pair(to, low, high);
  }

  static inline void copy_pair(Word* to, const bfloat16* x, const bfloat16* y) {
    Halves low, high;
    memcpy(&low, x, sizeof low);
    memcpy(&high, y, sizeof high);
    Words w = __builtin_convertvector(low, Words) | (__builtin_convertvector(high, Words) << 16);
    memcpy(to, &w, sizeof w);
  }
};

// A matrix of words (factors) or of float32 numbers (a result).
template <class T>
struct Matrix {
  T* at;
  int64_t row, column;  // strides

  Matrix(T* at, int64_t row, int64_t column = 1) : at(at), row(row), column(column) {}
  Matrix from(int64_t m, int64_t n) const { return {at + m * row + n * column, row, column}; }
};

template <class E>
using In = Matrix<const typename Layout<E>::Word>;

// One tile of the result: M rows of N vectors.
template <class E, int M, int N, bool ADD>
inline void tile(In<E> a, In<E> b, Matrix<float> c, int64_t words) {
  Floats total[M][N];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) total[m][n] = ADD ? load(c.at + m * c.row + n * LANES) : Floats{};
  for (int64_t k = 0; k < words; k++) {
    typename Layout<E>::Vector of_b[N];
    for (int n = 0; n < N; n++) memcpy(&of_b[n], b.at + k * b.row + n * LANES, sizeof of_b[n]);
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++)
        total[m][n] = Layout<E>::add_product(total[m][n], a.at[m * a.row + k * a.column], of_b[n]);
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(c.at + m * c.row + n * LANES, total[m][n]);
}

// Covers `rows` and `columns` with tiles of M rows and N vectors, and the rest with smaller ones.
template <class E, bool ADD, int M = ROWS, int N = COLUMNS>
inline void tiles(In<E> a, In<E> b, Matrix<float> c, int64_t rows, int64_t columns, int64_t words) {
  int64_t whole = rows / M * M, wide = columns / (N * LANES) * N * LANES;
  for (int64_t n = 0; n < wide; n += N * LANES)
    for (int64_t m = 0; m < whole; m += M)
      tile<E, M, N, ADD>(a.from(m, 0), b.from(0, n), c.from(m, n), words);
  if constexpr (N > 1)
    if (wide < columns)
      tiles<E, ADD, M, N / 2>(a, b.from(0, wide), c.from(0, wide), whole, columns - wide, words);
  if constexpr (M > 1)
    if (whole < rows)
      tiles<E, ADD, (M > 2 ? 2 : 1)>(a.from(whole, 0), b, c.from(whole, 0), rows - whole, columns,
                                     words);
}

// c = a b, or c += a b, where a is [rows, inner], b [inner, columns] and c [rows, columns];
// `columns` is a multiple of LANES.
template <class E, bool ADD>
inline void product(In<E> a, In<E> b, Matrix<float> c, int64_t rows, int64_t columns,
                    int64_t inner) {
  tiles<E, ADD>(a, b, c, rows, columns, inner / Layout<E>::PAIR);
}

}  // namespace
