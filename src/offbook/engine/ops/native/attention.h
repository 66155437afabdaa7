// Causal attention within each of many packed sequences, and to the prefix that they share. A task
// is a sequence and a key-value head, with the query heads that share it.

#pragma once

#include "products.h"
#include "threads.h"

namespace {

constexpr int64_t QUERIES = 24;  // of a block; they are scored with the keys up to the block's end
constexpr int64_t EVEN = 2;      // rows of a block are a multiple of this, to make pairs of them

// Shapes of the heads, and what a query sees: the prefix and the keys up to itself, or only the
// last `window` of those (0: all).
struct Heads {
  int64_t queries, keys, channels, prefix, window;
  float scaling;
};

// What attention reads and writes; ops/library.py has the same struct.
template <class E>
struct Attention {
  const E *q, *k, *v;        // [tokens, heads, channels]
  const E *past_k, *past_v;  // [prefix, heads, channels], or null
  E* o;                      // the output; not used in the backward pass
  const E* grad;             // its gradient, and those of the inputs: backward only
  E *dq, *dk, *dv;
  float *dpast_k, *dpast_v;  // [threads, prefix, heads, channels]: of a range of tasks each
  const int64_t* starts;     // [sequences + 1]: first token of each sequence, and the end
  int64_t sequences;
  Heads heads;
  float* workspace;
  int64_t threads;

  // Keys of the longest sequence, the prefix and padding included.
  int64_t most_keys() const {
    int64_t longest = 0;
    for (int64_t i = 0; i < sequences; i++)
      if (starts[i + 1] - starts[i] > longest) longest = starts[i + 1] - starts[i];
    return round_up(heads.prefix + longest, LANES);
  }
};

// A block of queries: numbers in float32, and the same as words along a row and as words of two
// rows.
template <class E>
struct Block {
  typedef typename Layout<E>::Word Word;
  float* numbers;
  Word *rows, *pairs;

  // Numbers of the workspace that a block of `size` elements uses: words of float32 are the numbers
  // themselves, words of bfloat16 take as much again.
  static int64_t workspace_size(int64_t size) { return Layout<E>::PAIR * size; }

  // Takes its part of the workspace, and advances the pointer.
  Block(float*& memory, int64_t size) {
    numbers = memory;
    rows = pairs = (Word*)numbers;
    memory += size;
    if (Layout<E>::PAIR == 1) return;
    rows = (Word*)memory;
    pairs = rows + size / 2;
    memory += size;
  }

  // Makes the words of `count` rows from the numbers.
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

  // Copies queries from a tensor; a missing query is zeros.
  void fill(const E* from, int64_t stride, int64_t count, int64_t width) {
    for (int64_t m = 0; m < round_up(count, EVEN); m++)
      for (int64_t d = 0; d < width; d += LANES)
        store(numbers + m * width + d, m < count ? load(from + m * stride + d) : Floats{});
    make_words(round_up(count, EVEN), width, width);
  }
};

// The workspace of a thread: keys and values of a task, each as words of two rows and as columns of
// words; their gradients; and blocks.
template <class E>
struct Workspace {
  typedef typename Layout<E>::Word Word;
  Word *keys, *key_columns, *values, *value_columns;
  float *dkeys, *dvalues;
  Block<E> q, other, scores, dscores;

  static float* after(float*& memory, int64_t size) {
    memory += size;
    return memory - size;
  }

  // Numbers that a thread uses.
  static int64_t size(int64_t padded, int64_t width) {
    return 6 * padded * width + 2 * Block<E>::workspace_size(QUERIES * width) +
           2 * Block<E>::workspace_size(QUERIES * padded);
  }

  Workspace(float* memory, int64_t padded, int64_t width)
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

// Copies keys or values to the workspace: the prefix's, the sequence's own, and zeros as padding.
template <class E>
void pack_keys(const E* past, const E* own, const Heads& heads, int64_t length, int64_t padded,
               typename Layout<E>::Word* pairs, typename Layout<E>::Word* columns) {
  typedef typename Layout<E>::Word Word;
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t width = heads.channels, stride = heads.keys * width, real = heads.prefix + length;
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

// Turns the scores of a block into probabilities, in place [block, padded]; those of missing
// queries are zero.
inline void softmax(float* scores, int64_t count, int64_t padded, int64_t seen, int64_t position,
                    const Heads& heads) {
  const Floats hidden = Floats{} - __builtin_inff();
  for (int64_t m = 0; m < round_up(count, EVEN); m++) {
    float* of_row = scores + m * padded;
    int64_t stop = m < count ? position + m + 1 : 0;
    int64_t start = heads.window && stop > heads.window ? stop - heads.window : 0;
    int64_t first = start / LANES * LANES, end = round_up(stop, LANES);
    Floats most = hidden, total = {};
    for (int64_t j = first; j < end; j += LANES) {
      Floats x = load(of_row + j) * heads.scaling;
      if (j < start || j + LANES > stop) {
        Ints at = places() + (int32_t)j;
        x = ((at >= (int32_t)start) & (at < (int32_t)stop)) ? x : hidden;
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

// dscores = p (dp - sum p dp) scaling, in place: dscores holds dp before.
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

// A sequence and a key-value head, with the query heads that share it.
struct Task {
  int64_t start, length, padded, head, queries, stride, key_stride, own, past;

  Task(int64_t number, const int64_t* starts, const Heads& heads)
      : start(starts[number / heads.keys]),
        length(starts[number / heads.keys + 1] - start),
        padded(round_up(heads.prefix + length, LANES)),
        head(number % heads.keys),
        queries(heads.queries / heads.keys),
        stride(heads.queries * heads.channels),
        key_stride(heads.keys * heads.channels),
        own(start * key_stride + head * heads.channels),
        past(head * heads.channels) {}

  // Calls function(first query, index of the block in the tensors) for the blocks of all heads.
  template <class Function>
  void for_each_block(const Heads& heads, Function function) const {
    for (int64_t first = 0; first < length; first += QUERIES)
      for (int64_t query = head * queries; query < (head + 1) * queries; query++)
        function(first, (start + first) * stride + query * heads.channels);
  }
};

// Computes the probabilities of a block, in `scores`; returns how many keys it sees.
template <class E>
int64_t attend_block(Workspace<E>& s, const Task& task, const Heads& heads, int64_t first,
                     int64_t count) {
  int64_t block = round_up(count, EVEN), position = heads.prefix + first;
  int64_t seen = round_up(position + count, LANES), padded = task.padded;
  product<E, false>({s.q.rows, heads.channels / Layout<E>::PAIR}, {s.key_columns, padded},
                    {s.scores.numbers, padded}, block, seen, heads.channels);
  softmax(s.scores.numbers, count, padded, seen, position, heads);
  s.scores.make_words(block, seen, padded);
  return seen;
}

// Rounds a block and stores it in a tensor.
template <class E>
void store_block(const float* numbers, E* to, int64_t stride, int64_t count, int64_t width) {
  for (int64_t m = 0; m < count; m++)
    for (int64_t d = 0; d < width; d += LANES)
      store(to + m * stride + d, load(numbers + m * width + d));
}

template <class E>
void attend(const Attention<E>& in) {
  constexpr int64_t PAIR = Layout<E>::PAIR;
  const Heads heads = in.heads;
  int64_t width = heads.channels, most_keys = in.most_keys();
  int64_t workspace_size = Workspace<E>::size(most_keys, width);
  Shares shares(in.sequences * heads.keys, in.threads);
  auto run = [&](int64_t thread, int64_t number) {
    Task task(number, in.starts, heads);
    int64_t padded = task.padded;
    Workspace<E> s(in.workspace + thread * workspace_size, most_keys, width);
    pack_keys<E>(in.past_k + task.past, in.k + task.own, heads, task.length, padded, nullptr,
                 s.key_columns);
    pack_keys<E>(in.past_v + task.past, in.v + task.own, heads, task.length, padded, s.values,
                 nullptr);
    task.for_each_block(heads, [&](int64_t first, int64_t at) {
      int64_t count = smaller(task.length - first, QUERIES), block = round_up(count, EVEN);
      s.q.fill(in.q + at, task.stride, count, width);
      int64_t seen = attend_block(s, task, heads, first, count);
      product<E, false>({s.scores.rows, padded / PAIR}, {s.values, width}, {s.other.numbers, width},
                        block, width, seen);
      store_block(s.other.numbers, in.o + at, task.stride, count, width);
    });
  };
  on_threads(in.threads, shares.tasks, [&](int64_t thread) {
    shares.each(thread, [&](int64_t number) { run(thread, number); });
  });
}

// Each range of tasks adds up its own gradient of the prefix; there are as many ranges as threads.
template <class E>
void attend_backward(const Attention<E>& in) {
  constexpr int64_t PAIR = Layout<E>::PAIR;
  const Heads heads = in.heads;
  int64_t width = heads.channels, most_keys = in.most_keys();
  int64_t workspace_size = Workspace<E>::size(most_keys, width);
  Sums sums(in.sequences * heads.keys, in.threads);
  auto run = [&](int64_t thread, int64_t range, int64_t place) {
    Task task(range + place * sums.count, in.starts, heads);
    int64_t padded = task.padded;
    Workspace<E> s(in.workspace + thread * workspace_size, most_keys, width);
    pack_keys<E>(in.past_k + task.past, in.k + task.own, heads, task.length, padded, s.keys,
                 s.key_columns);
    pack_keys<E>(in.past_v + task.past, in.v + task.own, heads, task.length, padded, nullptr,
                 s.value_columns);
    memset(s.dkeys, 0, padded * width * sizeof(float));
    memset(s.dvalues, 0, padded * width * sizeof(float));
    task.for_each_block(heads, [&](int64_t first, int64_t at) {
      int64_t count = smaller(task.length - first, QUERIES), block = round_up(count, EVEN);
      s.q.fill(in.q + at, task.stride, count, width);
      s.other.fill(in.grad + at, task.stride, count, width);
      int64_t seen = attend_block(s, task, heads, first, count);
      product<E, true>({s.scores.pairs, 1, padded}, {s.other.pairs, width}, {s.dvalues, width},
                       seen, width, block);
      product<E, false>({s.other.rows, width / PAIR}, {s.value_columns, padded},
                        {s.dscores.numbers, padded}, block, seen, width);
      softmax_backward(s.scores.numbers, s.dscores.numbers, block, padded, seen, heads.scaling);
      s.dscores.make_words(block, seen, padded);
      product<E, true>({s.dscores.pairs, 1, padded}, {s.q.pairs, width}, {s.dkeys, width}, seen,
                       width, block);
      product<E, false>({s.dscores.rows, padded / PAIR}, {s.keys, width}, {s.other.numbers, width},
                        block, width, seen);
      store_block(s.other.numbers, in.dq + at, task.stride, count, width);
    });
    for (int64_t i = 0; i < heads.prefix + task.length; i++)
      for (int64_t d = 0; d < width; d += LANES) {
        Floats of_key = load(s.dkeys + i * width + d), of_value = load(s.dvalues + i * width + d);
        if (i < heads.prefix) {
          int64_t to = (range * heads.prefix + i) * task.key_stride + task.past + d;
          store(in.dpast_k + to, load(in.dpast_k + to) + of_key);
          store(in.dpast_v + to, load(in.dpast_v + to) + of_value);
        } else {
          int64_t to = task.own + (i - heads.prefix) * task.key_stride + d;
          store(in.dk + to, of_key);
          store(in.dv + to, of_value);
        }
      }
  };
  on_threads(in.threads, sums.tasks, [&](int64_t thread) {
    sums.each(thread, [&](int64_t range, int64_t place) { run(thread, range, place); });
  });
}

}  // namespace
