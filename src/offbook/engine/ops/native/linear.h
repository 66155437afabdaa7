// Linear layers with LoRA: products with frozen weights, and what is added to them, in one pass.

#pragma once

#include "lora.h"
#include "products.h"

namespace {

// A term of a sum: x w + drop(h b), or x w' + drop(h b). ops/library.py has the same struct.
template <class E>
struct Term {
  const E *x, *w;
  int64_t inner, transposed;  // width of x; whether w is to be transposed
  const float *h, *b;
  int64_t rank;  // 0 without LoRA
  Dropout drop;
  int64_t first, last;  // the rows that h has; the others have no LoRA of this term
};

constexpr int64_t PANEL = 64;    // columns of the result that are computed together
constexpr int64_t CHUNK = 96;    // rows of a task
constexpr int64_t WORDS = 2048;  // of a column: with so many, a panel's weights fit the L2 cache

// y = the sum of terms, and the bias where there is one. ops/library.py has the same struct.
template <class E>
struct Linear {
  E* y;
  const Term<E>* terms;
  int64_t count;
  const E* bias;
  int64_t rows, width;
  float* workspace;
  int64_t threads;
};

// Bytes of the workspace that a thread uses: the weights of a panel, for terms whose widths add up
// to `inputs`.
inline int64_t linear_workspace(int64_t inputs, int64_t itemsize) {
  return PANEL * inputs * itemsize;
}

// Copies some columns of the weights to `to`, as words [inner / PAIR, columns].
template <class E>
void pack_weights(const Term<E>& term, int64_t width, int64_t first, int64_t columns,
                  typename Layout<E>::Word* to) {
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t words = term.inner / PAIR;
  const float* columns_of_w = (const float*)(term.w + first * term.inner);
  const E* rows_of_w = term.w + first;
  if (term.transposed) {
    for (int64_t n = 0; n < columns; n += LANES)
      for (int64_t k = 0; k < words; k += LANES)
        transpose(columns_of_w + n * words + k, words, (float*)to + k * columns + n, columns);
    return;
  }
  for (int64_t k = 0; k < words; k++)
    for (int64_t n = 0; n < columns; n += LANES) {
      const E* from = rows_of_w + k * PAIR * width + n;
      Layout<E>::copy_pair(to + k * columns + n, from, from + width);
    }
}

// c = the sum of products, for some rows of a panel; c is [rows, columns].
template <class E>
void multiply(const Term<E>* terms, int64_t count, const typename Layout<E>::Word* weights,
              float* c, int64_t row, int64_t rows, int64_t columns) {
  typedef typename Layout<E>::Word Word;
  constexpr int64_t PAIR = Layout<E>::PAIR;
  for (int64_t i = 0; i < count; i++) {
    int64_t words = terms[i].inner / PAIR;
    for (int64_t k = 0; k < words; k += WORDS) {
      int64_t block = smaller(words - k, WORDS);
      In<E> x((const Word*)terms[i].x + row * words + k, words), w(weights, columns);
      if (i || k)
        tiles<E, true>(x, w, {c, columns}, rows, columns, block);
      else
        tiles<E, false>(x, w, {c, columns}, rows, columns, block);
      weights += block * columns;
    }
  }
}

// Adds the bias and LoRA's products to M rows of a panel, then rounds and stores them.
template <int M, class E>
inline void finish(const Term<E>* terms, int64_t count, const E* bias, const float* c, E* y,
                   int64_t width, int64_t row, int64_t first, int64_t columns) {
  for (int64_t n = 0; n < columns; n = next_pair(n)) {
    int64_t column = first + n;
    Floats low[M], high[M];
    for (int m = 0; m < M; m++) {
      low[m] = load(c + m * columns + n) + (bias ? load(bias + column) : Floats{});
      high[m] = load(c + m * columns + n + HALF) + (bias ? load(bias + column + HALF) : Floats{});
    }
    for (int64_t i = 0; i < count; i++) {
      const Term<E>& term = terms[i];
      if (!term.rank || row + M <= term.first || row >= term.last) continue;
      const float* h = term.h - term.first * term.rank;
      Dropout drop = term.drop;
      if (drop.numbers) drop.numbers -= term.first;
      if (row >= term.first && row + M <= term.last)
        add_lora_b<M>(low, high, h, term.b, width, term.rank, row, column, drop);
      else
        for (int m = 0; m < M; m++)
          if (row + m >= term.first && row + m < term.last)
            add_lora_b<1>(low + m, high + m, h, term.b, width, term.rank, row + m, column, drop);
    }
    for (int m = 0; m < M; m++) {
      store(y + (row + m) * width + column, low[m]);
      store(y + (row + m) * width + column + HALF, high[m]);
    }
  }
}

// A task is a chunk of rows and a panel of columns. Tasks are in the order of the panels, and a
// thread packs the weights of a panel when it takes its first task there.
template <class E>
void linear(const Linear<E>& call) {
  typedef typename Layout<E>::Word Word;
  constexpr int64_t PAIR = Layout<E>::PAIR;
  E* y = call.y;
  const Term<E>* terms = call.terms;
  const E* bias = call.bias;
  int64_t count = call.count, rows = call.rows, width = call.width, threads = call.threads;
  int64_t chunks = (rows + CHUNK - 1) / CHUNK, panels = (width + PANEL - 1) / PANEL, inputs = 0;
  for (int64_t i = 0; i < count; i++) inputs += terms[i].inner;
  int64_t workspace_size = linear_workspace(inputs, sizeof(E)) / (int64_t)sizeof(float);
  float* workspace = call.workspace;
  // Where a panel's weights fit the cache, few rows go through it at a time: their sums are still
  // in the cache when LoRA's part is added.
  int64_t together = inputs / PAIR <= WORDS ? ROWS : CHUNK;
  Shares shares(panels * chunks, threads);
  on_threads(threads, shares.tasks, [&](int64_t thread) {
    int64_t packed = -1;
    Word* weights = (Word*)(workspace + thread * workspace_size);
    shares.each(thread, [&](int64_t task) {
      int64_t panel = task / chunks, first = panel * PANEL, columns = smaller(width - first, PANEL);
      int64_t start = task % chunks * CHUNK, stop = smaller(start + CHUNK, rows);
      if (panel != packed) {
        Word* to = weights;
        for (int64_t i = 0; i < count; i++) {
          pack_weights(terms[i], width, first, columns, to);
          to += terms[i].inner / PAIR * columns;
        }
        packed = panel;
      }
      alignas(64) float c[CHUNK * PANEL];
      for (int64_t row = start; row < stop; row += together) {
        int64_t end = smaller(row + together, stop), m = row;
        for (int64_t i = row; i < end; i++)  // fetch what will be written
          for (int64_t n = 0; n < columns; n += 64 / (int64_t)sizeof(E))
            __builtin_prefetch(y + i * width + first + n, 1);
        multiply(terms, count, weights, c, row, end - row, columns);
        for (; m + ROWS / 2 <= end; m += ROWS / 2)
          finish<ROWS / 2>(terms, count, bias, c + (m - row) * columns, y, width, m, first,
                           columns);
        for (; m < end; m++)
          finish<1>(terms, count, bias, c + (m - row) * columns, y, width, m, first, columns);
      }
    });
  });
}

}  // namespace
