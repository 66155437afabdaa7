// Linear layers with their adapters: products with frozen weights, in one pass.

#pragma once

#include <omp.h>

#include "adapters.h"
#include "products.h"

namespace {

// A term of a sum, with its adapter: x w + drop(h a), or x w' + drop(h a).
template <class E>
struct Term {
  const E *x, *w;
  int64_t inner, transposed;
  const float *h, *a;
  int64_t rank;
  Dropout drop;
};

constexpr int64_t PANEL = 64;    // columns of weights that are laid out together
constexpr int64_t CHUNK = 96;    // rows of a task
constexpr int64_t WORDS = 2048;  // of a column; with so many, a panel stays in the second cache

// Columns of the weights, [inner / PAIR, columns] words.
template <class E>
void lay_out_weights(const Term<E>& term, int64_t width, int64_t first, int64_t columns,
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

// The sum of products, for some rows of a panel; c [rows, columns].
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

// Adds bias and adapters to M rows of a panel, and rounds.
template <int M, class E>
inline void finish(const Term<E>* terms, int64_t count, const E* bias, const float* c, E* y,
                   int64_t width, int64_t row, int64_t first, int64_t columns) {
  for (int64_t n = 0; n < columns; n += 2 * LANES) {
    int64_t column = first + n;
    Floats low[M], high[M];
    for (int m = 0; m < M; m++) {
      low[m] = load(c + m * columns + n) + (bias ? load(bias + column) : Floats{});
      high[m] = load(c + m * columns + n + LANES) + (bias ? load(bias + column + LANES) : Floats{});
    }
    for (int64_t i = 0; i < count; i++)
      if (terms[i].rank)
        add_adapter<M>(low, high, terms[i].h, terms[i].a, width, terms[i].rank, row, column,
                       terms[i].drop);
    for (int m = 0; m < M; m++) {
      store(y + (row + m) * width + column, low[m]);
      store(y + (row + m) * width + column + LANES, high[m]);
    }
  }
}

// Tasks, a share of neighbours for each thread. One that has done its own helps with the others', for
// cores are not equally fast, nor equally free.
struct Shares {
  static constexpr int64_t MOST = 256;
  int64_t tasks, count, taken[MOST] = {};

  Shares(int64_t tasks, int64_t threads) : tasks(tasks), count(smaller(threads, MOST)) {}

  // Whether there was another task in a share.
  bool take(int64_t share, int64_t& task) {
    task = share * tasks / count + __atomic_fetch_add(taken + share, 1, __ATOMIC_RELAXED);
    return task < (share + 1) * tasks / count;
  }
};

// y = the sum of terms, and the bias if there is one. A task is a chunk of rows and a panel; tasks
// are in the order of the panels, and each thread lays out the panels that it meets.
template <class E>
void linear(E* y, const Term<E>* terms, int64_t count, const E* bias, int64_t rows, int64_t width,
            float* scratch, int64_t scratch_size, int64_t threads) {
  typedef typename Layout<E>::Word Word;
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t chunks = (rows + CHUNK - 1) / CHUNK, panels = (width + PANEL - 1) / PANEL, words = 0;
  for (int64_t i = 0; i < count; i++) words += terms[i].inner / PAIR;
  // A panel that stays in a cache is gone through for every few rows, which then are still at hand.
  int64_t together = words <= WORDS ? ROWS : CHUNK;
  Shares shares(panels * chunks, threads);
#pragma omp parallel num_threads(threads)
  {
    int64_t thread = omp_get_thread_num(), laid_out = -1;
    Word* weights = (Word*)(scratch + thread * scratch_size);
    auto run = [&](int64_t task) {
      int64_t panel = task / chunks, first = panel * PANEL, columns = smaller(width - first, PANEL);
      int64_t start = task % chunks * CHUNK, stop = smaller(start + CHUNK, rows);
      if (panel != laid_out) {
        Word* to = weights;
        for (int64_t i = 0; i < count; i++) {
          lay_out_weights(terms[i], width, first, columns, to);
          to += terms[i].inner / PAIR * columns;
        }
        laid_out = panel;
      }
      alignas(64) float c[CHUNK * PANEL];
      for (int64_t row = start; row < stop; row += together) {
        int64_t end = smaller(row + together, stop), m = row;
        for (int64_t i = row; i < end; i++)  // what will be written is fetched meanwhile
          for (int64_t n = 0; n < columns; n += 64 / (int64_t)sizeof(E))
            __builtin_prefetch(y + i * width + first + n, 1);
        multiply(terms, count, weights, c, row, end - row, columns);
        for (; m + ROWS / 2 <= end; m += ROWS / 2)
          finish<ROWS / 2>(terms, count, bias, c + (m - row) * columns, y, width, m, first, columns);
        for (; m < end; m++)
          finish<1>(terms, count, bias, c + (m - row) * columns, y, width, m, first, columns);
      }
    };
    for (int64_t i = 0; i < shares.count; i++)
      for (int64_t task, share = (thread + i) % shares.count; shares.take(share, task);) run(task);
  }
}

}  // namespace
