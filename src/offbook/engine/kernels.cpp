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
// numbers come from each word of a counter that two rounds of multiplication mix; the seed enters
// before each, so that the counters of two matrices never meet.
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
           uint64_t seed, uint32_t threshold) {
  Dropout drop{seed, threshold};
  constexpr int64_t block = 8;
#pragma omp parallel for schedule(static)
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

// Attention. Each task is a row and a key head, whose keys and values are laid out in float32 both
// ways, so that every product below is one of scalars with vectors of neighbours.

constexpr int64_t QUERIES = 24;  // of a block, which sees the keys up to its own end
constexpr int64_t TILE = 4;

template <int N, bool ADD>
inline void tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                 float* c, int64_t c_row, int64_t inner) {
  Floats total[TILE][N];
  for (int m = 0; m < TILE; m++)
    for (int n = 0; n < N; n++) total[m][n] = ADD ? load(c + m * c_row + n * LANES) : Floats{};
  for (int64_t k = 0; k < inner; k++) {
    Floats of_b[N];
    for (int n = 0; n < N; n++) of_b[n] = load(b + k * b_row + n * LANES);
    for (int m = 0; m < TILE; m++)
      for (int n = 0; n < N; n++) total[m][n] += a[m * a_row + k * a_column] * of_b[n];
  }
  for (int m = 0; m < TILE; m++)
    for (int n = 0; n < N; n++) store(c + m * c_row + n * LANES, total[m][n]);
}

// c = a b, or c += a b; rows in fours, columns in sixteens.
template <bool ADD>
inline void product(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
                    float* c, int64_t c_row, int64_t rows, int64_t columns, int64_t inner) {
  for (int64_t n = 0; n < columns; n += 4 * LANES)
    for (int64_t m = 0; m < rows; m += TILE) {
      const float *of_a = a + m * a_row, *of_b = b + n;
      float* of_c = c + m * c_row + n;
      switch ((columns - n) / LANES) {
        case 1: tile<1, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner); break;
        case 2: tile<2, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner); break;
        case 3: tile<3, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner); break;
        default: tile<4, ADD>(of_a, a_row, a_column, of_b, b_row, of_c, c_row, inner);
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

// Copies [count, width] with a stride between rows to float32, and its transpose beside it.
template <class E>
void lay_out(const E* from, int64_t stride, int64_t count, int64_t width, float* rows,
             float* columns, int64_t first, int64_t padded) {
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < width; d += LANES) {
      Floats x = load(from + i * stride + d);
      store(rows + (first + i) * width + d, x);
      if (columns)
        for (int k = 0; k < LANES; k++) columns[(d + k) * padded + first + i] = x[k];
    }
}

// Scores of a block to probabilities, in rows [block, padded]; those of missing queries are zero.
inline void softmax(float* scores, int64_t count, int64_t padded, int64_t seen, int64_t position,
                    int64_t window) {
  const Ints places = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Floats hidden = Floats{} - __builtin_inff();
  for (int64_t m = 0; m < up_to(count, TILE); m++) {
    float* of_row = scores + m * padded;
    int64_t stop = m < count ? position + m + 1 : 0;
    int64_t start = window && stop > window ? stop - window : 0;
    int64_t first = start / LANES * LANES, end = up_to(stop, LANES);
    Floats most = hidden, total = {};
    for (int64_t j = first; j < end; j += LANES) {
      Floats x = load(of_row + j);
      if (j < start || j + LANES > stop) {
        Ints at = places + (int32_t)j;
        x = (at >= (int32_t)start) & (at < (int32_t)stop) ? x : hidden;
        store(of_row + j, x);
      }
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

// Working memory of a thread.
struct Scratch {
  float *keys, *keys_t, *values, *values_t, *dkeys, *dvalues, *q, *other, *scores, *dscores;

  Scratch(float* memory, int64_t padded, int64_t width) {
    float** parts[] = {&keys, &keys_t, &values, &values_t, &dkeys, &dvalues};
    for (float** part : parts) {
      *part = memory;
      memory += padded * width;
    }
    q = memory;
    other = q + QUERIES * width;
    scores = other + QUERIES * width;
    dscores = scores + QUERIES * padded;
  }
};

template <class E>
struct Tensors {
  const E *q, *k, *v, *past_k, *past_v;
};

template <class E>
void lay_out_keys(const Tensors<E>& in, const Heads& heads, int64_t head, int64_t start,
                  int64_t length, int64_t padded, Scratch& s, bool backward) {
  int64_t width = heads.width, stride = heads.keys * width;
  if (heads.prefix) {
    lay_out(in.past_k + head * width, stride, heads.prefix, width, s.keys, s.keys_t, 0, padded);
    lay_out(in.past_v + head * width, stride, heads.prefix, width, s.values,
            backward ? s.values_t : nullptr, 0, padded);
  }
  lay_out(in.k + start * stride + head * width, stride, length, width, s.keys, s.keys_t,
          heads.prefix, padded);
  lay_out(in.v + start * stride + head * width, stride, length, width, s.values,
          backward ? s.values_t : nullptr, heads.prefix, padded);
  // Padding is multiplied by zeros, so it must be a number.
  for (int64_t i = heads.prefix + length; i < padded; i++)
    for (int64_t d = 0; d < width; d++) {
      s.keys[i * width + d] = s.values[i * width + d] = s.keys_t[d * padded + i] = 0;
      if (backward) s.values_t[d * padded + i] = 0;
    }
}

// Queries of a block, scaled, with zeros for those that are missing.
template <class E>
void lay_out_queries(const E* from, int64_t stride, int64_t count, int64_t width, float scaling,
                     float* rows) {
  for (int64_t m = 0; m < up_to(count, TILE); m++)
    for (int64_t d = 0; d < width; d += LANES)
      store(rows + m * width + d, m < count ? load(from + m * stride + d) * scaling : Floats{});
}

template <class E>
void attend(const Tensors<E>& in, E* o, const int64_t* starts, int64_t rows, Heads heads,
            float* scratch, int64_t longest, int64_t scratch_size, int64_t threads) {
  int64_t width = heads.width, shared = heads.queries / heads.keys;
  int64_t stride = heads.queries * width;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t task = 0; task < rows * heads.keys; task++) {
    int64_t row = task / heads.keys, head = task % heads.keys, start = starts[row];
    int64_t length = starts[row + 1] - start, padded = up_to(heads.prefix + length, LANES);
    Scratch s(scratch + omp_get_thread_num() * scratch_size, longest, width);
    lay_out_keys(in, heads, head, start, length, padded, s, false);
    for (int64_t first = 0; first < length; first += QUERIES) {
      int64_t count = length - first < QUERIES ? length - first : QUERIES;
      int64_t position = heads.prefix + first, seen = up_to(position + count, LANES);
      for (int64_t query = head * shared; query < (head + 1) * shared; query++) {
        int64_t at = (start + first) * stride + query * width;
        lay_out_queries(in.q + at, stride, count, width, heads.scaling, s.q);
        product<false>(s.q, width, 1, s.keys_t, padded, s.scores, padded, up_to(count, TILE), seen,
                       width);
        softmax(s.scores, count, padded, seen, position, heads.window);
        product<false>(s.scores, padded, 1, s.values, width, s.other, width, up_to(count, TILE),
                       width, seen);
        for (int64_t m = 0; m < count; m++)
          for (int64_t d = 0; d < width; d += LANES)
            store(o + at + m * stride + d, load(s.other + m * width + d));
      }
    }
  }
}

// dscores = p (dp - sum p dp), dp being in dscores.
inline void softmax_backward(const float* p, float* dscores, int64_t count, int64_t padded,
                             int64_t seen) {
  for (int64_t m = 0; m < count; m++) {
    const float* of_p = p + m * padded;
    float* of_row = dscores + m * padded;
    Floats along = {};
    for (int64_t j = 0; j < seen; j += LANES) along += load(of_p + j) * load(of_row + j);
    float share = sum(along);
    for (int64_t j = 0; j < seen; j += LANES)
      store(of_row + j, load(of_p + j) * (load(of_row + j) - share));
  }
}

// The prefix's gradients are added up for each thread, [threads, prefix, keys, width].
template <class E>
void attend_backward(const Tensors<E>& in, const E* grad, E* dq, E* dk, E* dv, float* dpast_k,
                     float* dpast_v, const int64_t* starts, int64_t rows, Heads heads,
                     float* scratch, int64_t longest, int64_t scratch_size, int64_t threads) {
  int64_t width = heads.width, shared = heads.queries / heads.keys;
  int64_t stride = heads.queries * width, key_stride = heads.keys * width;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int64_t task = 0; task < rows * heads.keys; task++) {
    int64_t row = task / heads.keys, head = task % heads.keys, start = starts[row];
    int64_t length = starts[row + 1] - start, padded = up_to(heads.prefix + length, LANES);
    int64_t thread = omp_get_thread_num();
    Scratch s(scratch + thread * scratch_size, longest, width);
    lay_out_keys(in, heads, head, start, length, padded, s, true);
    memset(s.dkeys, 0, padded * width * sizeof(float));
    memset(s.dvalues, 0, padded * width * sizeof(float));
    for (int64_t first = 0; first < length; first += QUERIES) {
      int64_t count = length - first < QUERIES ? length - first : QUERIES;
      int64_t position = heads.prefix + first, seen = up_to(position + count, LANES);
      int64_t block = up_to(count, TILE);
      for (int64_t query = head * shared; query < (head + 1) * shared; query++) {
        int64_t at = (start + first) * stride + query * width;
        lay_out_queries(in.q + at, stride, count, width, heads.scaling, s.q);
        lay_out_queries(grad + at, stride, count, width, 1.0f, s.other);
        product<false>(s.q, width, 1, s.keys_t, padded, s.scores, padded, block, seen, width);
        softmax(s.scores, count, padded, seen, position, heads.window);
        product<true>(s.scores, 1, padded, s.other, width, s.dvalues, width, seen, width, block);
        product<false>(s.other, width, 1, s.values_t, padded, s.dscores, padded, block, seen,
                       width);
        softmax_backward(s.scores, s.dscores, block, padded, seen);
        product<true>(s.dscores, 1, padded, s.q, width, s.dkeys, width, seen, width, block);
        product<false>(s.dscores, padded, 1, s.keys, width, s.other, width, block, width, seen);
        for (int64_t m = 0; m < count; m++)
          for (int64_t d = 0; d < width; d += LANES)
            store(dq + at + m * stride + d, load(s.other + m * width + d) * heads.scaling);
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
                      int64_t rank, uint64_t seed, uint32_t threshold) {                          \
    outer(x, h, d, rows, width, rank, seed, threshold);                                           \
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
