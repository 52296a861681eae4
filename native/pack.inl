// Pack: 64 bytes of T as a value, whatever the width of the machine's vectors. Every instruction set therefore adds the
// same lanes in the same order, and gives the same bits.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define INLINE inline __attribute__((always_inline))

template <class T>
struct Pack {
  static constexpr int size = 64 / sizeof(T);
  static constexpr int parts = 64 / kVectorBytes;
  static constexpr int lanes = size / parts;
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
  typedef T Loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
  Vec v[parts];

  static INLINE Pack of(T value) {
    Pack r;
    for (int k = 0; k < parts; ++k) r.v[k] = value - Vec{};
    return r;
  }
  static INLINE Pack zero() {
    Pack r;
    for (int k = 0; k < parts; ++k) r.v[k] = Vec{};
    return r;
  }
  static INLINE Pack load(const T* p) {
    Pack r;
    for (int k = 0; k < parts; ++k) r.v[k] = *reinterpret_cast<const Loose*>(p + k * lanes);
    return r;
  }
  INLINE void store(T* p) const {
    for (int k = 0; k < parts; ++k) *reinterpret_cast<Loose*>(p + k * lanes) = v[k];
  }
  // Past the caches; p is aligned to 64 bytes.
  INLINE void stream(T* p) const {
    for (int k = 0; k < parts; ++k) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(p + k * lanes), (__m512i)v[k]);
#elif defined(__AVX2__)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p + k * lanes), (__m256i)v[k]);
#elif defined(__SSE2__)
      _mm_stream_si128(reinterpret_cast<__m128i*>(p + k * lanes), (__m128i)v[k]);
#else
      *reinterpret_cast<Loose*>(p + k * lanes) = v[k];
#endif
    }
  }
};

using Floats = Pack<float>::Vec;
using Doubles = Pack<double>::Vec;

template <class T>
INLINE Pack<T> operator+(Pack<T> a, Pack<T> b) {
  for (int k = 0; k < Pack<T>::parts; ++k) a.v[k] += b.v[k];
  return a;
}
template <class T>
INLINE Pack<T> operator-(Pack<T> a, Pack<T> b) {
  for (int k = 0; k < Pack<T>::parts; ++k) a.v[k] -= b.v[k];
  return a;
}
template <class T>
INLINE Pack<T> operator*(Pack<T> a, Pack<T> b) {
  for (int k = 0; k < Pack<T>::parts; ++k) a.v[k] *= b.v[k];
  return a;
}

// a + b on the ports that multiply, where the processor has a fused multiply-add: a * 1 + b is rounded once, to the same
// bits. Sums that keep the adders busy are spread over both.
template <class T>
INLINE Pack<T> plus(Pack<T> a, Pack<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) a.v[0] = (typename Pack<T>::Vec)_mm512_fmadd_ps((__m512)a.v[0], _mm512_set1_ps(1), (__m512)b.v[0]);
  else a.v[0] = (typename Pack<T>::Vec)_mm512_fmadd_pd((__m512d)a.v[0], _mm512_set1_pd(1), (__m512d)b.v[0]);
  return a;
#elif defined(__FMA__)
  for (int k = 0; k < Pack<T>::parts; ++k) {
    if constexpr (sizeof(T) == 4) a.v[k] = (typename Pack<T>::Vec)_mm256_fmadd_ps((__m256)a.v[k], _mm256_set1_ps(1), (__m256)b.v[k]);
    else a.v[k] = (typename Pack<T>::Vec)_mm256_fmadd_pd((__m256d)a.v[k], _mm256_set1_pd(1), (__m256d)b.v[k]);
  }
  return a;
#else
  return a + b;
#endif
}

template <class T>
INLINE Pack<T> operator/(Pack<T> a, Pack<T> b) {
  for (int k = 0; k < Pack<T>::parts; ++k) a.v[k] /= b.v[k];
  return a;
}

// Which lanes.
#if defined(__AVX512F__)
template <class T>
struct Mask {
  Word<T> word;
};
INLINE Mask<float> operator<=(Pack<float> a, Pack<float> b) {
  return {_mm512_cmp_ps_mask((__m512)a.v[0], (__m512)b.v[0], _CMP_LE_OQ)};
}
INLINE Mask<double> operator<=(Pack<double> a, Pack<double> b) {
  return {_mm512_cmp_pd_mask((__m512d)a.v[0], (__m512d)b.v[0], _CMP_LE_OQ)};
}
INLINE Mask<float> operator<(Pack<float> a, Pack<float> b) {
  return {_mm512_cmp_ps_mask((__m512)a.v[0], (__m512)b.v[0], _CMP_LT_OQ)};
}
INLINE Mask<double> operator<(Pack<double> a, Pack<double> b) {
  return {_mm512_cmp_pd_mask((__m512d)a.v[0], (__m512d)b.v[0], _CMP_LT_OQ)};
}
template <class T>
INLINE Mask<T> neither(Mask<T> a, Mask<T> b) {
  return {Word<T>(~(a.word | b.word))};
}
INLINE Pack<float> select(Mask<float> mask, Pack<float> a, Pack<float> b) {
  a.v[0] = (Floats)_mm512_mask_blend_ps(mask.word, (__m512)b.v[0], (__m512)a.v[0]);
  return a;
}
INLINE Pack<double> select(Mask<double> mask, Pack<double> a, Pack<double> b) {
  a.v[0] = (Doubles)_mm512_mask_blend_pd(mask.word, (__m512d)b.v[0], (__m512d)a.v[0]);
  return a;
}
// A mask as a word, lane 0 in the last bit, and back.
template <class T>
INLINE Word<T> word_of(Mask<T> mask) {
  return mask.word;
}
template <class T>
INLINE Mask<T> mask_of(Word<T> word) {
  return {word};
}
#else
// All bits of a lane set, or none.
template <class T>
struct Mask {
  typedef decltype(typename Pack<T>::Vec{} < typename Pack<T>::Vec{}) Vec;
  Vec v[Pack<T>::parts];
};

template <class T>
INLINE Mask<T> operator<=(Pack<T> a, Pack<T> b) {
  Mask<T> r;
  for (int k = 0; k < Pack<T>::parts; ++k) r.v[k] = a.v[k] <= b.v[k];
  return r;
}
template <class T>
INLINE Mask<T> operator<(Pack<T> a, Pack<T> b) {
  Mask<T> r;
  for (int k = 0; k < Pack<T>::parts; ++k) r.v[k] = a.v[k] < b.v[k];
  return r;
}
template <class T>
INLINE Mask<T> neither(Mask<T> a, Mask<T> b) {
  for (int k = 0; k < Pack<T>::parts; ++k) a.v[k] = ~(a.v[k] | b.v[k]);
  return a;
}
template <class T>
INLINE Pack<T> select(Mask<T> mask, Pack<T> a, Pack<T> b) {
  for (int k = 0; k < Pack<T>::parts; ++k) a.v[k] = mask.v[k] ? a.v[k] : b.v[k];
  return a;
}

template <class T>
INLINE Word<T> word_of(Mask<T> mask) {
  unsigned word = 0;
  for (int k = 0; k < Pack<T>::parts; ++k) {
    unsigned part = 0;
#if defined(__AVX2__)
    if constexpr (sizeof(T) == 4) part = _mm256_movemask_ps((__m256)mask.v[k]);
    else part = _mm256_movemask_pd((__m256d)mask.v[k]);
#elif defined(__SSE2__)
    if constexpr (sizeof(T) == 4) part = _mm_movemask_ps((__m128)mask.v[k]);
    else part = _mm_movemask_pd((__m128d)mask.v[k]);
#else
    for (int j = 0; j < Pack<T>::lanes; ++j) part |= unsigned(mask.v[k][j] & 1) << j;
#endif
    word |= part << (k * Pack<T>::lanes);
  }
  return Word<T>(word);
}
template <class T>
INLINE Mask<T> mask_of(Word<T> word) {
  using V = typename Mask<T>::Vec;
  Mask<T> r;
  for (int k = 0; k < Pack<T>::parts; ++k) {
    V bit;
    for (int j = 0; j < Pack<T>::lanes; ++j) bit[j] = 1 << (k * Pack<T>::lanes + j);
    r.v[k] = (bit & (V{} + word)) != V{};
  }
  return r;
}

#endif

// Asks for a cache line that is wanted soon. Any address will do; one that is not there costs nothing.
template <class T>
INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}

// What streaming stores wrote is visible to other threads only after this.
INLINE void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// ---- wide: sums in double, whatever is summed ---------------------------------------------------------------------

// A float pack is two packs of doubles, a double pack is itself.
template <class T>
struct Wide {
  static constexpr int parts = sizeof(double) / sizeof(T);
  Pack<double> p[parts];

  static INLINE Wide zero() {
    Wide r;
    for (int k = 0; k < parts; ++k) r.p[k] = Pack<double>::zero();
    return r;
  }
  static INLINE Wide load(const double* from) {
    Wide r;
    for (int k = 0; k < parts; ++k) r.p[k] = Pack<double>::load(from + k * 8);
    return r;
  }
  INLINE void store(double* to) const {
    for (int k = 0; k < parts; ++k) p[k].store(to + k * 8);
  }
};

// One vector of doubles from as many floats in memory. Spelled out, because compilers build the generic conversion from
// halves and shuffles.
INLINE Pack<double>::Vec to_doubles(const float* p) {
#if defined(__AVX512F__)
  return (Pack<double>::Vec)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (Pack<double>::Vec)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  return Pack<double>::Vec{p[0], p[1]};
#endif
}

INLINE Wide<double> widen(Pack<double> x) { return {{x}}; }
INLINE Wide<float> widen(Pack<float> x) {
#if defined(__AVX512F__)
  const __m512 v = (__m512)x.v[0];
  Wide<float> r;
  r.p[0].v[0] = (Pack<double>::Vec)_mm512_cvtps_pd(_mm512_castps512_ps256(v));
  r.p[1].v[0] = (Pack<double>::Vec)_mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  return r;
#elif defined(__AVX2__)
  Wide<float> r;
  for (int k = 0; k < 2; ++k) {
    const __m256 v = (__m256)x.v[k];
    r.p[k].v[0] = (Pack<double>::Vec)_mm256_cvtps_pd(_mm256_castps256_ps128(v));
    r.p[k].v[1] = (Pack<double>::Vec)_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
  }
  return r;
#else
  float all[16];
  x.store(all);
  Wide<float> r;
  for (int k = 0; k < 2; ++k)
    for (int j = 0; j < Pack<double>::parts; ++j) r.p[k].v[j] = to_doubles(all + k * 8 + j * Pack<double>::lanes);
  return r;
#endif
}

template <class T>
INLINE void accumulate(Wide<T>& sum, Wide<T> x) {
  for (int k = 0; k < Wide<T>::parts; ++k) sum.p[k] = plus(x.p[k], sum.p[k]);
}

// (sum, tail) <- (sum, tail) + x without rounding error (Knuth's two-sum).
INLINE void two_sum(double& sum, double& tail, double x) {
  const double s = sum + x;
  const double z = s - sum;
  tail += (sum - (s - z)) + (x - z);
  sum = s;
}
INLINE void two_sum(Pack<double>& sum, Pack<double>& tail, Pack<double> x) {
  const Pack<double> s = sum + x;
  const Pack<double> z = s - sum;
  tail = tail + ((sum - (s - z)) + (x - z));
  sum = s;
}

// A sum as good as exact. Floats added as doubles lose nothing that matters (2^29 values of one magnitude are added
// exactly). Doubles need the tail: many small values on top of a large one are rounded the same way every time.
template <class T>
struct ExactSum;
template <>
struct ExactSum<float> {
  Wide<float> sum = Wide<float>::zero();
  INLINE void add(Wide<float> x) { accumulate(sum, x); }
  INLINE void load(const double* value, const double*) { sum = Wide<float>::load(value); }
  INLINE void store(double* value, double*) const { sum.store(value); }
  INLINE void total(double& value, double& tail) const {
    double lanes[8];
    (sum.p[0] + sum.p[1]).store(lanes);
    value = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    tail = 0;
  }
};
template <>
struct ExactSum<double> {
  Pack<double> sum = Pack<double>::zero(), tails = Pack<double>::zero();
  INLINE void add(Wide<double> x) { two_sum(sum, tails, x.p[0]); }
  INLINE void load(const double* value, const double* tail) {
    sum = Pack<double>::load(value);
    tails = Pack<double>::load(tail);
  }
  INLINE void store(double* value, double* tail) const {
    sum.store(value);
    tails.store(tail);
  }
  INLINE void total(double& value, double& tail) const {
    double lanes[8], rests[8];
    sum.store(lanes);
    tails.store(rests);
    value = tail = 0;
    for (double lane : lanes) two_sum(value, tail, lane);
    for (double rest : rests) two_sum(value, tail, rest);
  }
};

// What rounding lost counts only while the sum is finite: inf - inf is no tail. (Said so that it becomes vectors.)
INLINE double total(double value, double tail) { return tail - tail == 0 ? value + tail : value; }

template <class T>
INLINE double total(const ExactSum<T>& sum) {
  double value, tail;
  sum.total(value, tail);
  return total(value, tail);
}

// Adds to sums that lie in memory.
template <class T>
INLINE void add_to(double* sums, double* tails, Wide<T> x) {
  ExactSum<T> sum;
  sum.load(sums, tails);
  sum.add(x);
  sum.store(sums, tails);
}

// Packs that come one by one, added up to eight in T and then to a sum. What is left is added by `flush`.
template <class T>
struct Eights {
  Pack<T> sum = Pack<T>::zero();
  int count = 0;
  INLINE void add(Pack<T> x, ExactSum<T>& whole) {
    sum = sum + x;
    if (++count == 8) flush(whole);
  }
  INLINE void flush(ExactSum<T>& whole) {
    if (count == 0) return;
    whole.add(widen(sum));
    *this = Eights{};
  }
};

template <class T>
INLINE Pack<T> tree(const Pack<T> (&t)[8]) {
  return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
}
