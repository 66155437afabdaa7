// Fused loops for processors. PyTorch takes one operation at a time, and each reads and writes
// memory; here what belongs together is one pass. kernels.py compiles this file and documents what
// each function computes; every sum is taken in float32.
//
// Vectors are those of GCC, which splits them where the processor's are narrower. Row widths are
// multiples of 32. OpenMP's threads are PyTorch's own: the library is loaded beside its runtime.

#include <omp.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

constexpr int64_t LANES = 16;
constexpr int64_t RANKS = 8;  // sums of an adapter that are kept in registers at a time

struct bfloat16 {
  uint16_t bits;
};

inline Floats load(const float* p) {
  Floats x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline Floats load(const bfloat16* p) {
  Halves h;
  memcpy(&h, p, sizeof h);
  return (Floats)(__builtin_convertvector(h, Words) << 16);
}

inline void store(float* p, Floats x) { memcpy(p, &x, sizeof x); }

// To the nearest, ties to even. What overflows becomes infinite, and no number stays none.
inline void store(bfloat16* p, Floats x) {
#ifdef __AVX512BF16__
  __m256bh h = _mm512_cvtneps_pbh((__m512)x);
#else
  Words w = (Words)x;
  Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  Words quiet = (w >> 16) | 0x40;
  Words is_number = (Words)(x == x);
  Halves h = __builtin_convertvector((rounded & is_number) | (quiet & ~is_number), Halves);
#endif
  memcpy(p, &h, sizeof h);
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Folds the lanes of a vector in halves.
template <class Join>
inline float fold(Floats x, Join join) {
  x = join(x, __builtin_shuffle(x, Ints{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
  x = join(x, __builtin_shuffle(x, Ints{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
  x = join(x, __builtin_shuffle(x, Ints{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
  x = join(x, __builtin_shuffle(x, Ints{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
  return x[0];
}

inline float sum(Floats x) {
  return fold(x, [](Floats a, Floats b) { return a + b; });
}

inline float largest(Floats x) { return fold(x, larger); }

// 2^n f, f being a Taylor polynomial on [-ln 2 / 2, ln 2 / 2]: off by 2e-7 at most. Below -87 it
// is 0, and above 88 it grows no more.
inline Floats exp(Floats x) {
  constexpr float terms[] = {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
  constexpr float round = 12582912;  // 1.5 * 2^23: what is added to it loses its fraction
  Floats inside = x < 88.0f ? x : Floats{} + 88.0f;
  Floats rounded = inside * 1.44269504f + round, n = rounded - round;
  Floats f = inside - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  Floats y = Floats{} + 1 / 720.0f;
  for (float term : terms) y = y * f + term;
  y = (Floats)((Ints)y + ((Ints)rounded << 23));
  y = x > -87.0f ? y : Floats{};
  return x == x ? y : x;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }

// Which elements of a matrix are dropped, from its seed and their places alone. Two random 16-bit
// numbers come from each word of a counter, mixed as in Wellons's lowbias32 (2018); the seed enters
// before each of its two multiplications, so that the words of two matrices never meet.
struct Dropout {
  uint64_t seed;
  uint32_t threshold;  // of 65536; 0 where nothing is dropped

  // Applies to 32 elements, `at` being the place of the first.
  inline void operator()(Floats& low, Floats& high, int64_t at) const {
    if (!threshold) return;
    Words w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    w = (w + (uint32_t)(at / 2)) ^ (uint32_t)seed;
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
template <int ROWS, class E>
inline void down_rows(const E* x, const float* a, float* h, int64_t width, int64_t rank,
                      int64_t row, Dropout drop) {
  for (int64_t first = 0; first < rank; first += RANKS) {
    Floats total[ROWS][RANKS] = {};
    for (int64_t i = 0; i < width; i += 2 * LANES) {
      Floats low[ROWS], high[ROWS];
      for (int m = 0; m < ROWS; m++) {
        low[m] = load(x + (row + m) * width + i);
        high[m] = load(x + (row + m) * width + i + LANES);
        drop(low[m], high[m], (row + m) * width + i);
      }
      for (int r = 0; r < RANKS; r++) {
        const float* of_rank = a + (first + r) * width + i;
        Floats a_low = load(of_rank), a_high = load(of_rank + LANES);
        for (int m = 0; m < ROWS; m++) total[m][r] += low[m] * a_low + high[m] * a_high;
      }
    }
    for (int m = 0; m < ROWS; m++)
      for (int r = 0; r < RANKS; r++) h[(row + m) * rank + first + r] = sum(total[m][r]);
  }
}

template <class E>
void down(const E* x, const float* a, float* h, int64_t rows, int64_t width, int64_t rank,
          uint64_t seed, uint32_t threshold) {
  Dropout drop{seed, threshold};
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row += 2) {
    if (row + 1 < rows)
      down_rows<2>(x, a, h, width, rank, row, drop);
    else
      down_rows<1>(x, a, h, width, rank, row, drop);
  }
}

// y += drop(h a)
template <int ROWS, class E>
inline void up_rows(E* y, const float* h, const float* a, int64_t width, int64_t rank, int64_t row,
                    Dropout drop) {
  for (int64_t i = 0; i < width; i += 2 * LANES) {
    Floats low[ROWS] = {}, high[ROWS] = {};
    for (int64_t r = 0; r < rank; r++) {
      Floats a_low = load(a + r * width + i), a_high = load(a + r * width + i + LANES);
      for (int m = 0; m < ROWS; m++) {
        low[m] += h[(row + m) * rank + r] * a_low;
        high[m] += h[(row + m) * rank + r] * a_high;
      }
    }
    for (int m = 0; m < ROWS; m++) {
      int64_t at = (row + m) * width + i;
      drop(low[m], high[m], at);
      store(y + at, load(y + at) + low[m]);
      store(y + at + LANES, load(y + at + LANES) + high[m]);
    }
  }
}

template <class E>
void up(E* y, const float* h, const float* a, int64_t rows, int64_t width, int64_t rank,
        uint64_t seed, uint32_t threshold) {
  Dropout drop{seed, threshold};
  constexpr int64_t block = 4;
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row += block) {
    if (row + block <= rows)
      up_rows<block>(y, h, a, width, rank, row, drop);
    else
      for (int64_t last = row; last < rows; last++) up_rows<1>(y, h, a, width, rank, last, drop);
  }
}

// d += h' drop(x)
template <int ROWS, class E>
inline void outer_rows(const E* x, const float* h, float* d, int64_t width, int64_t rank,
                       int64_t row, Dropout drop) {
  for (int64_t i = 0; i < width; i += 2 * LANES) {
    Floats low[ROWS], high[ROWS];
    for (int m = 0; m < ROWS; m++) {
      low[m] = load(x + (row + m) * width + i);
      high[m] = load(x + (row + m) * width + i + LANES);
      drop(low[m], high[m], (row + m) * width + i);
    }
    for (int64_t r = 0; r < rank; r++) {
      float* of_rank = d + r * width + i;
      Floats d_low = load(of_rank), d_high = load(of_rank + LANES);
      for (int m = 0; m < ROWS; m++) {
        d_low += h[(row + m) * rank + r] * low[m];
        d_high += h[(row + m) * rank + r] * high[m];
      }
      store(of_rank, d_low);
      store(of_rank + LANES, d_high);
    }
  }
}

// Each thread adds up its own rows, in d [threads, rank, width], which is zero at first.
template <class E>
void outer(const E* x, const float* h, float* d, int64_t rows, int64_t width, int64_t rank,
           uint64_t seed, uint32_t threshold, int64_t threads) {
  Dropout drop{seed, threshold};
  constexpr int64_t block = 8;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; row += block) {
    float* own = d + omp_get_thread_num() * rank * width;
    if (row + block <= rows)
      outer_rows<block>(x, h, own, width, rank, row, drop);
    else
      for (int64_t last = row; last < rows; last++)
        outer_rows<1>(x, h, own, width, rank, last, drop);
  }
}

template <class E>
void rms_norm(const E* x, const E* weight, E* y, float* scale, int64_t rows, int64_t width,
              float eps) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    Floats squares = {};
    for (int64_t i = 0; i < width; i += LANES) {
      Floats v = load(x + row * width + i);
      squares += v * v;
    }
    float s = scale[row] = 1 / __builtin_sqrtf(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
      store(y + row * width + i, load(x + row * width + i) * s * load(weight + i));
  }
}

template <class E>
void rms_norm_backward(const E* dy, const E* x, const E* weight, const float* scale, E* dx,
                       int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    Floats along = {};
    for (int64_t i = 0; i < width; i += LANES)
      along += load(dy + row * width + i) * load(weight + i) * load(x + row * width + i);
    float s = scale[row], share = sum(along) * s * s / width;  // the scale depends on x
    for (int64_t i = 0; i < width; i += LANES) {
      Floats of_dy = load(dy + row * width + i) * load(weight + i);
      store(dx + row * width + i, (of_dy - load(x + row * width + i) * share) * s);
    }
  }
}

template <class E>
void swiglu(const E* gate, const E* up, E* y, int64_t count) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i += LANES) {
    Floats g = load(gate + i);
    store(y + i, g * sigmoid(g) * load(up + i));
  }
}

template <class E>
void swiglu_backward(const E* dy, const E* gate, const E* up, E* dgate, E* dup, int64_t count) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i += LANES) {
    Floats g = load(gate + i), d = load(dy + i), s = sigmoid(g);
    store(dup + i, d * g * s);
    store(dgate + i, d * load(up + i) * s * (1.0f + g * (1.0f - s)));
  }
}

// The halves of every head are turned, by an angle of the token's; `sign` is -1 to turn them back.
template <class E>
void rotate(const E* x, const E* cosines, const E* sines, E* y, int64_t tokens, int64_t heads,
            int64_t width, float sign) {
  int64_t half = width / 2;
#pragma omp parallel for schedule(static)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t head = 0; head < heads; head++)
      for (int64_t d = 0; d < half; d += LANES) {
        const E *of_cos = cosines + token * width + d, *of_sin = sines + token * width + d;
        int64_t at = (token * heads + head) * width + d;
        Floats low = load(x + at), high = load(x + at + half);
        store(y + at, low * load(of_cos) - high * load(of_sin) * sign);
        store(y + at + half, high * load(of_cos + half) + low * load(of_sin + half) * sign);
      }
}

// The logits become the gradient: probabilities, less one at the target.
template <class E>
void cross_entropy(E* logits, const int64_t* targets, float* loss, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < rows; row++) {
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
  }
}

// Attention. Each task is a row and a key head. Products are of scalars with vectors of neighbours;
// in bfloat16 a scalar is a word of two numbers, which follow each other along the dimension that is
// summed over, so that one instruction multiplies and adds both.

constexpr int64_t QUERIES = 24;  // of a block, which sees the keys up to its own end
constexpr int64_t TILE = 4;

// How numbers of a format are laid out as words of a product.
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

  // Neighbours in a row share a word.
  static inline void store_row(Word* to, Floats x) { store((bfloat16*)to, x); }

  // The same places of two rows share a word.
  static inline void store_pair(Word* to, Floats x, Floats y) {
    bfloat16 low[LANES], high[LANES];
    store(low, x);
    store(high, y);
    Halves l, h;
    memcpy(&l, low, sizeof l);
    memcpy(&h, high, sizeof h);
    Words w = __builtin_convertvector(l, Words) | (__builtin_convertvector(h, Words) << 16);
    memcpy(to, &w, sizeof w);
  }
};

template <class E, int N, bool ADD>
inline void tile(const typename Layout<E>::Word* a, int64_t a_row, int64_t a_column,
                 const typename Layout<E>::Word* b, int64_t b_row, float* c, int64_t c_row,
                 int64_t inner) {
  Floats total[TILE][N];
  for (int m = 0; m < TILE; m++)
    for (int n = 0; n < N; n++) total[m][n] = ADD ? load(c + m * c_row + n * LANES) : Floats{};
  for (int64_t k = 0; k < inner; k++) {
    typename Layout<E>::Vector of_b[N];
    for (int n = 0; n < N; n++) memcpy(&of_b[n], b + k * b_row + n * LANES, sizeof of_b[n]);
    for (int m = 0; m < TILE; m++)
      for (int n = 0; n < N; n++)
        total[m][n] = Layout<E>::add_product(total[m][n], a[m * a_row + k * a_column], of_b[n]);
  }
  for (int m = 0; m < TILE; m++)
    for (int n = 0; n < N; n++) store(c + m * c_row + n * LANES, total[m][n]);
}

// c = a b, or c += a b; rows in fours, columns in sixteens, `inner` numbers summed over. Strides are
// in words.
template <class E, bool ADD>
inline void product(const typename Layout<E>::Word* a, int64_t a_row, int64_t a_column,
                    const typename Layout<E>::Word* b, int64_t b_row, float* c, int64_t c_row,
                    int64_t rows, int64_t columns, int64_t inner) {
  inner /= Layout<E>::PAIR;
  for (int64_t n = 0; n < columns; n += 4 * LANES)
    for (int64_t m = 0; m < rows; m += TILE) {
      auto *of_a = a + m * a_row, *of_b = b + n;
      float* of_c = c + m * c_row + n;
      switch ((columns - n) / LANES) {
        case 1: tile<E, 1, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner); break;
        case 2: tile<E, 2, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner); break;
        case 3: tile<E, 3, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner); break;
        default: tile<E, 4, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner);
      }
    }
}

inline int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

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
    for (int64_t m = 0; m < up_to(count, TILE); m++)
      for (int64_t d = 0; d < width; d += LANES)
        store(numbers + m * width + d, m < count ? load(from + m * stride + d) : Floats{});
    make_words(up_to(count, TILE), width, width);
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
  const Ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats hidden = Floats{} - __builtin_inff();
  for (int64_t m = 0; m < up_to(count, TILE); m++) {
    float* of_row = scores + m * padded;
    int64_t stop = m < count ? position + m + 1 : 0;
    int64_t start = heads.window && stop > heads.window ? stop - heads.window : 0;
    int64_t first = start / LANES * LANES, end = up_to(stop, LANES);
    Floats most = hidden, total = {};
    for (int64_t j = first; j < end; j += LANES) {
      Floats x = load(of_row + j) * heads.scaling;
      if (j < start || j + LANES > stop) {
        Ints at = places + (int32_t)j;
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

template <class E>
void attend(const Tensors<E>& in, E* o, const int64_t* starts, int64_t rows, const Heads& heads,
            float* scratch, int64_t longest, int64_t scratch_size, int64_t threads) {
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t width = heads.width, shared = heads.queries / heads.keys;
  int64_t stride = heads.queries * width, key_stride = heads.keys * width;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t task = 0; task < rows * heads.keys; task++) {
    int64_t row = task / heads.keys, head = task % heads.keys, start = starts[row];
    int64_t length = starts[row + 1] - start, padded = up_to(heads.prefix + length, LANES);
    int64_t own = start * key_stride + head * width, past = head * width;
    Scratch<E> s(scratch + omp_get_thread_num() * scratch_size, longest, width);
    lay_out<E>(in.past_k + past, in.k + own, heads, length, padded, nullptr, s.key_columns);
    lay_out<E>(in.past_v + past, in.v + own, heads, length, padded, s.values, nullptr);
    for (int64_t first = 0; first < length; first += QUERIES) {
      int64_t count = length - first < QUERIES ? length - first : QUERIES;
      int64_t block = up_to(count, TILE), position = heads.prefix + first;
      int64_t seen = up_to(position + count, LANES);
      for (int64_t query = head * shared; query < (head + 1) * shared; query++) {
        int64_t at = (start + first) * stride + query * width;
        s.q.fill(in.q + at, stride, count, width);
        product<E, false>(s.q.rows, width / PAIR, 1, s.key_columns, padded, s.scores.numbers, padded,
                          block, seen, width);
        softmax(s.scores.numbers, count, padded, seen, position, heads);
        s.scores.make_words(block, seen, padded);
        product<E, false>(s.scores.rows, padded / PAIR, 1, s.values, width, s.other.numbers, width,
                          block, width, seen);
        for (int64_t m = 0; m < count; m++)
          for (int64_t d = 0; d < width; d += LANES)
            store(o + at + m * stride + d, load(s.other.numbers + m * width + d));
      }
    }
  }
}

// The prefix's gradients are added up for each thread, [threads, prefix, keys, width].
template <class E>
void attend_backward(const Tensors<E>& in, const E* grad, E* dq, E* dk, E* dv, float* dpast_k,
                     float* dpast_v, const int64_t* starts, int64_t rows, const Heads& heads,
                     float* scratch, int64_t longest, int64_t scratch_size, int64_t threads) {
  constexpr int64_t PAIR = Layout<E>::PAIR;
  int64_t width = heads.width, shared = heads.queries / heads.keys;
  int64_t stride = heads.queries * width, key_stride = heads.keys * width;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t task = 0; task < rows * heads.keys; task++) {
    int64_t row = task / heads.keys, head = task % heads.keys, start = starts[row];
    int64_t length = starts[row + 1] - start, padded = up_to(heads.prefix + length, LANES);
    int64_t own = start * key_stride + head * width, past = head * width;
    int64_t thread = omp_get_thread_num();
    Scratch<E> s(scratch + thread * scratch_size, longest, width);
    lay_out<E>(in.past_k + past, in.k + own, heads, length, padded, s.keys, s.key_columns);
    lay_out<E>(in.past_v + past, in.v + own, heads, length, padded, nullptr, s.value_columns);
    memset(s.dkeys, 0, padded * width * sizeof(float));
    memset(s.dvalues, 0, padded * width * sizeof(float));
    for (int64_t first = 0; first < length; first += QUERIES) {
      int64_t count = length - first < QUERIES ? length - first : QUERIES;
      int64_t block = up_to(count, TILE), position = heads.prefix + first;
      int64_t seen = up_to(position + count, LANES);
      for (int64_t query = head * shared; query < (head + 1) * shared; query++) {
        int64_t at = (start + first) * stride + query * width;
        s.q.fill(in.q + at, stride, count, width);
        s.other.fill(grad + at, stride, count, width);
        product<E, false>(s.q.rows, width / PAIR, 1, s.key_columns, padded, s.scores.numbers, padded,
                          block, seen, width);
        softmax(s.scores.numbers, count, padded, seen, position, heads);
        s.scores.make_words(block, seen, padded);
        product<E, true>(s.scores.pairs, 1, padded, s.other.pairs, width, s.dvalues, width, seen,
                         width, block);
        product<E, false>(s.other.rows, width / PAIR, 1, s.value_columns, padded,
                          s.dscores.numbers, padded, block, seen, width);
        softmax_backward(s.scores.numbers, s.dscores.numbers, block, padded, seen, heads.scaling);
        s.dscores.make_words(block, seen, padded);
        product<E, true>(s.dscores.pairs, 1, padded, s.q.pairs, width, s.dkeys, width, seen, width,
                         block);
        product<E, false>(s.dscores.rows, padded / PAIR, 1, s.keys, width, s.other.numbers, width,
                          block, width, seen);
        for (int64_t m = 0; m < count; m++)
          for (int64_t d = 0; d < width; d += LANES)
            store(dq + at + m * stride + d, load(s.other.numbers + m * width + d));
      }
    }
    for (int64_t i = 0; i < heads.prefix + length; i++)
      for (int64_t d = 0; d < width; d += LANES) {
        Floats of_key = load(s.dkeys + i * width + d), of_value = load(s.dvalues + i * width + d);
        if (i < heads.prefix) {
          int64_t to = (thread * heads.prefix + i) * key_stride + head * width + d;
          store(dpast_k + to, load(dpast_k + to) + of_key);
          store(dpast_v + to, load(dpast_v + to) + of_value);
        } else {
          int64_t to = (start + i - heads.prefix) * key_stride + head * width + d;
          store(dk + to, of_key);
          store(dv + to, of_value);
        }
      }
  }
}

}  // namespace

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
  void outer_##suffix(const E* x, const float* h, float* d, int64_t rows, int64_t width,          \
                      int64_t rank, uint64_t seed, uint32_t threshold, int64_t threads) {         \
    outer(x, h, d, rows, width, rank, seed, threshold, threads);                                  \
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
