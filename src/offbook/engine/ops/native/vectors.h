// Vectors as wide as the processor's registers, and functions on them. The types are
// extensions of GCC and Clang.

#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int64_t BYTES = 64;
#elif defined(__AVX__)
constexpr int64_t BYTES = 32;
#else
constexpr int64_t BYTES = 16;
#endif

// Vectors in a row of a tile: a product keeps the sums of ROWS (6) such rows in registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int COLUMNS = 4;  // there are 32 registers
#else
constexpr int COLUMNS = 2;  // there are 16
#endif

constexpr int64_t LANES = BYTES / 4;

// Every width (features, channels of a head, vocabulary) must be a multiple of this.
constexpr int64_t WIDTH_MULTIPLE = 32;
constexpr int64_t HALF = WIDTH_MULTIPLE / 2;
static_assert(HALF % LANES == 0, "loops take two vectors at a time, HALF columns apart");

// The first column of the pair of vectors after that of columns i and i + HALF.
inline int64_t next_pair(int64_t i) {
  i += LANES;
  return LANES == HALF || i % HALF == 0 ? i + HALF : i;
}

typedef float Floats __attribute__((vector_size(BYTES)));
typedef int32_t Ints __attribute__((vector_size(BYTES)));
typedef uint32_t Words __attribute__((vector_size(BYTES)));
typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));

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

// Rounds to the nearest, ties to even. Overflow gives infinity, and NaN stays NaN.
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

// 0, 1, 2, ...
inline Ints places() {
  Ints x;
  for (int i = 0; i < LANES; i++) x[i] = i;
  return x;
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// The lanes of x, followed by those of y, at these places.
inline Floats shuffle(Floats x, Floats y, Ints at) {
#ifdef __clang__
  Floats found;
  for (int i = 0; i < LANES; i++) found[i] = at[i] < LANES ? x[at[i]] : y[at[i] - LANES];
  return found;
#else
  return __builtin_shuffle(x, y, at);
#endif
}

// Reduces the lanes of a vector to one number, half of them at a time.
template <class Join>
inline float fold(Floats x, Join join) {
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2) x = join(x, shuffle(x, x, places() ^ half));
  return x[0];
}

inline float sum(Floats x) {
  return fold(x, [](Floats a, Floats b) { return a + b; });
}

inline float largest(Floats x) { return fold(x, larger); }

// exp(x) = 2^n p(f), where f = x - n ln 2 is in [-ln 2 / 2, ln 2 / 2] and p is the Taylor
// polynomial of degree 6; the relative error is at most 2e-7. Below -87 the result is 0; above 88,
// exp(88).
inline Floats exp(Floats x) {
  constexpr float terms[] = {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1, 1};
  constexpr float round = 12582912;  // 1.5 * 2^23: adding it rounds to a whole number
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

// Transposes a matrix of LANES x LANES words.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
  Floats rows[LANES];
  for (int i = 0; i < LANES; i++) rows[i] = load(from + i * from_row);
#pragma GCC unroll 4
  for (int bit = 1; bit < LANES; bit *= 2) {  // swap this bit of the row and of the lane
    Ints set = (places() & bit) != 0, other = places() ^ bit;
    Ints low = set ? other + (int)LANES : places(), high = set ? places() + (int)LANES : other;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & bit)) {
        Floats x = rows[i], y = rows[i + bit];
        rows[i] = shuffle(x, y, low);
        rows[i + bit] = shuffle(x, y, high);
      }
  }
  for (int i = 0; i < LANES; i++) store(to + i * to_row, rows[i]);
}

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace
