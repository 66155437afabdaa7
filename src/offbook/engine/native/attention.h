// Causal attention of packed rows, and to their shared prefix. A task is a row and a key head.

#pragma once

#include <omp.h>

#include "products.h"

namespace {

constexpr int64_t QUERIES = 24;  // of a block, which sees the keys up to its own end
constexpr int64_t EVEN = 2;      // so many rows make words of pairs

// The heads' shape, and what a query sees: the prefix and the keys up to itself, or the last
// `window` of those.
struct Heads {
  int64_t queries, keys, width, prefix, window;
  float scaling;
};

template <class E>
struct Tensors {
  const E *q, *k, *v, *past_k, *past_v;
};

// Numbers of a block of queries, and the words of them: along a row, and of pairs of rows.
template <class E>
struct Block {
  typedef typename Layout<E>::Word Word;
  float* numbers;
  Word *rows, *pairs;

  // Takes its memory, and moves the pointer on.
  Block(float*& memory, int64_t size) {
    numbers = memory;
    rows = pairs = (Word*)numbers;
    memory += size;
    if (Layout<E>::PAIR == 1) return;
    rows = (Word*)memory;
    pairs = rows + size / 2;
    memory += size;
  }

  void make_words(int64_t count, int64_t width, int64_t stride) {
    if (Layout<E>::PAIR == 1) return;
    for (int64_t m = 0; m < count; m += 2)
      for (int64_t j = 0; j < width; j += LANES) {
        Floats x = load(numbers + m * stride + j), y = load(numbers + (m + 1) * stride + j);
        Layout<E>::store_row(rows + (m * stride + j) / 2, x);
        Layout<E>::store_row(rows + ((m + 1) * stride + j) / 2, y);
        Layout<E>::store_pair(pairs + m / 2 * stride + j, x, y);
      }
  }

  // From a tensor; missing queries are zeros.
  void fill(const E* from, int64_t stride, int64_t count, int64_t width) {
    for (int64_t m = 0; m < up_to(count, EVEN); m++)
      for (int64_t d = 0; d < width; d += LANES)
        store(numbers + m * width + d, m < count ? load(from + m * stride + d) : Floats{});
    make_words(up_to(count, EVEN), width, width);
  }
};

// Working memory of a thread: the keys and values of a task, each as pairs of rows and as columns of
// words, their gradients, and blocks.
template <class E>
struct Scratch {
  typedef typename Layout<E>::Word Word;
  Word *keys, *key_columns, *values, *value_columns;
  float *dkeys, *dvalues;
  Block<E> q, other, scores, dscores;

  static float* after(float*& memory, int64_t size) {
    memory += size;
    return memory - size;
  }

  Scratch(float* memory, int64_t padded, int64_t width)
      : keys((Word*)after(memory, padded * width)),
        key_columns((Word*)after(memory, padded * width)),
        values((Word*)after(memory, padded * width)),
        value_columns((Word*)after(memory, padded * width)),
        dkeys(after(memory, padded * width)),
        dvalues(after(memory, padded * width)),
        q(memory, QUERIES * width),
        other(memory, QUERIES * width),
        scores(memory, QUERIES * padded),
        dscores(memory, QUERIES * padded) {}
};

// Lays out keys, or values: the prefix's, the row's own, and zeros as padding.
template <class E>
void lay_out(const E* past, const E* own, const Heads& heads, int64_t length, int64_t padded,
             typename Layout<E>::Word* pairs, typename Layout<E>::Word* columns) {
  typedef typename Layout<E>::Word Word;
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t width = heads.width, stride = heads.keys * width, real = heads.prefix + length;
  auto at = [&](int64_t i) {
    return i < heads.prefix ? past + i * stride : own + (i - heads.prefix) * stride;
  };
  auto numbers = [&](int64_t i, int64_t d) { return i < real ? load(at(i) + d) : Floats{}; };
  if (pairs)
    for (int64_t i = 0; i < padded; i += PAIR)
      for (int64_t d = 0; d < width; d += LANES)
        Layout<E>::store_pair(pairs + i / PAIR * width + d, numbers(i, d), numbers(i + 1, d));
  if (columns)
    for (int64_t i = 0; i < padded; i++)
      for (int64_t d = 0; d < width; d += PAIR) {
        Word w = {};
        if (i < real) memcpy(&w, at(i) + d, sizeof w);
        columns[d / PAIR * padded + i] = w;
      }
}

// Scores of a block to probabilities, in rows [block, padded]; those of missing queries are zero.
inline void softmax(float* scores, int64_t count, int64_t padded, int64_t seen, int64_t position,
                    const Heads& heads) {
  const Floats hidden = Floats{} - __builtin_inff();
  for (int64_t m = 0; m < up_to(count, EVEN); m++) {
    float* of_row = scores + m * padded;
    int64_t stop = m < count ? position + m + 1 : 0;
    int64_t start = heads.window && stop > heads.window ? stop - heads.window : 0;
    int64_t first = start / LANES * LANES, end = up_to(stop, LANES);
    Floats most = hidden, total = {};
    for (int64_t j = first; j < end; j += LANES) {
      Floats x = load(of_row + j) * heads.scaling;
      if (j < start || j + LANES > stop) {
        Ints at = places() + (int32_t)j;
        x = (at >= (int32_t)start) & (at < (int32_t)stop) ? x : hidden;
      }
      store(of_row + j, x);
      most = larger(most, x);
    }
    float peak = largest(most);
    for (int64_t j = first; j < end; j += LANES) {
      Floats p = exp(load(of_row + j) - peak);
      total += p;
      store(of_row + j, p);
    }
    Floats share = Floats{} + 1 / sum(total);
    for (int64_t j = first; j < end; j += LANES) store(of_row + j, load(of_row + j) * share);
    for (int64_t j = 0; j < first; j += LANES) store(of_row + j, Floats{});
    for (int64_t j = end; j < seen; j += LANES) store(of_row + j, Floats{});
  }
}

// dscores = p (dp - sum p dp) scaling, dp being in dscores.
inline void softmax_backward(const float* p, float* dscores, int64_t count, int64_t padded,
                             int64_t seen, float scaling) {
  for (int64_t m = 0; m < count; m++) {
    const float* of_p = p + m * padded;
    float* of_row = dscores + m * padded;
    Floats along = {};
    for (int64_t j = 0; j < seen; j += LANES) along += load(of_p + j) * load(of_row + j);
    float share = sum(along);
    for (int64_t j = 0; j < seen; j += LANES)
      store(of_row + j, load(of_p + j) * (load(of_row + j) - share) * scaling);
  }
}

// A row and a key head, with the query heads that share it.
struct Task {
  int64_t start, length, padded, head, queries, stride, key_stride, own, past;

  Task(int64_t number, const int64_t* starts, const Heads& heads)
      : start(starts[number / heads.keys]),
        length(starts[number / heads.keys + 1] - start),
        padded(up_to(heads.prefix + length, LANES)),
        head(number % heads.keys),
        queries(heads.queries / heads.keys),
        stride(heads.queries * heads.width),
        key_stride(heads.keys * heads.width),
        own(start * key_stride + head * heads.width),
        past(head * heads.width) {}

  // Calls a function for the blocks of queries of all heads, with a block's place in the tensors.
  template <class Function>
  void for_each_block(const Heads& heads, Function function) const {
    for (int64_t first = 0; first < length; first += QUERIES)
      for (int64_t query = head * queries; query < (head + 1) * queries; query++)
        function(first, (start + first) * stride + query * heads.width);
  }
};

// Probabilities of a block, in `scores`, and their words; returns how many keys are seen.
template <class E>
int64_t attend_block(Scratch<E>& s, const Task& task, const Heads& heads, int64_t first,
                     int64_t count) {
  int64_t block = up_to(count, EVEN), position = heads.prefix + first;
  int64_t seen = up_to(position + count, LANES), padded = task.padded;
  product<E, false>({s.q.rows, heads.width / Layout<E>::PAIR}, {s.key_columns, padded},
                    {s.scores.numbers, padded}, block, seen, heads.width);
  softmax(s.scores.numbers, count, padded, seen, position, heads);
  s.scores.make_words(block, seen, padded);
  return seen;
}

template <class E>
void store_block(const float* numbers, E* to, int64_t stride, int64_t count, int64_t width) {
  for (int64_t m = 0; m < count; m++)
    for (int64_t d = 0; d < width; d += LANES)
      store(to + m * stride + d, load(numbers + m * width + d));
}

template <class E>
void attend(const Tensors<E>& in, E* o, const int64_t* starts, int64_t rows, const Heads& heads,
            float* scratch, int64_t longest, int64_t scratch_size, int64_t threads) {
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t width = heads.width;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t number = 0; number < rows * heads.keys; number++) {
    Task task(number, starts, heads);
    int64_t padded = task.padded;
    Scratch<E> s(scratch + omp_get_thread_num() * scratch_size, longest, width);
    lay_out<E>(in.past_k + task.past, in.k + task.own, heads, task.length, padded, nullptr,
               s.key_columns);
    lay_out<E>(in.past_v + task.past, in.v + task.own, heads, task.length, padded, s.values,
               nullptr);
    task.for_each_block(heads, [&](int64_t first, int64_t at) {
      int64_t count = smaller(task.length - first, QUERIES), block = up_to(count, EVEN);
      s.q.fill(in.q + at, task.stride, count, width);
      int64_t seen = attend_block(s, task, heads, first, count);
      product<E, false>({s.scores.rows, padded / PAIR}, {s.values, width},
                        {s.other.numbers, width}, block, width, seen);
      store_block(s.other.numbers, o + at, task.stride, count, width);
    });
  }
}

// The prefix's gradients are added up for each thread, [threads, prefix, keys, width].
template <class E>
void attend_backward(const Tensors<E>& in, const E* grad, E* dq, E* dk, E* dv, float* dpast_k,
                     float* dpast_v, const int64_t* starts, int64_t rows, const Heads& heads,
                     float* scratch, int64_t longest, int64_t scratch_size, int64_t threads) {
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t width = heads.width;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t number = 0; number < rows * heads.keys; number++) {
    Task task(number, starts, heads);
    int64_t padded = task.padded, thread = omp_get_thread_num();
    Scratch<E> s(scratch + thread * scratch_size, longest, width);
    lay_out<E>(in.past_k + task.past, in.k + task.own, heads, task.length, padded, s.keys,
               s.key_columns);
    lay_out<E>(in.past_v + task.past, in.v + task.own, heads, task.length, padded, nullptr,
               s.value_columns);
    memset(s.dkeys, 0, padded * width * sizeof(float));
    memset(s.dvalues, 0, padded * width * sizeof(float));
    task.for_each_block(heads, [&](int64_t first, int64_t at) {
      int64_t count = smaller(task.length - first, QUERIES), block = up_to(count, EVEN);
      s.q.fill(in.q + at, task.stride, count, width);
      s.other.fill(grad + at, task.stride, count, width);
      int64_t seen = attend_block(s, task, heads, first, count);
      product<E, true>({s.scores.pairs, 1, padded}, {s.other.pairs, width}, {s.dvalues, width},
                       seen, width, block);
      product<E, false>({s.other.rows, width / PAIR}, {s.value_columns, padded},
                        {s.dscores.numbers, padded}, block, seen, width);
      softmax_backward(s.scores.numbers, s.dscores.numbers, block, padded, seen, heads.scaling);
      s.dscores.make_words(block, seen, padded);
      product<E, true>({s.dscores.pairs, 1, padded}, {s.q.pairs, width}, {s.dkeys, width}, seen,
                       width, block);
      product<E, false>({s.dscores.rows, padded / PAIR}, {s.keys, width},
                        {s.other.numbers, width}, block, width, seen);
      store_block(s.other.numbers, dq + at, task.stride, count, width);
    });
    for (int64_t i = 0; i < heads.prefix + task.length; i++)
      for (int64_t d = 0; d < width; d += LANES) {
        Floats of_key = load(s.dkeys + i * width + d), of_value = load(s.dvalues + i * width + d);
        if (i < heads.prefix) {
          int64_t to = (thread * heads.prefix + i) * task.key_stride + task.past + d;
          store(dpast_k + to, load(dpast_k + to) + of_key);
          store(dpast_v + to, load(dpast_v + to) + of_value);
        } else {
          int64_t to = task.own + (i - heads.prefix) * task.key_stride + d;
          store(dk + to, of_key);
          store(dv + to, of_value);
        }
      }
  }
}

}  // namespace
