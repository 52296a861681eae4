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
  // The first n < size values; the other lanes hold `fill`.
  static INLINE Pack load_first(const T* p, int64_t n, T fill) {
    T all[size];
    for (int k = 0; k < size; ++k) all[k] = k < n ? p[k] : fill;
    return load(all);
  }
  INLINE void store(T* p) const {
    for (int k = 0; k < parts; ++k) *reinterpret_cast<Loose*>(p + k * lanes) = v[k];
  }
  INLINE void store_first(T* p, int64_t n) const {
    T all[size];
    store(all);
    for (int k = 0; k < n; ++k) p[k] = all[k];
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
  template <bool Stream>
  INLINE void put(T* p) const {
    if constexpr (Stream) stream(p);
    else store(p);
  }
};

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

INLINE Wide<double> load_wide(const double* p) { return {{Pack<double>::load(p)}}; }
INLINE Wide<float> load_wide(const float* p) {
  constexpr int lanes = Pack<double>::lanes;
  Wide<float> r;
  for (int k = 0; k < 2; ++k)
    for (int j = 0; j < Pack<double>::parts; ++j) r.p[k].v[j] = to_doubles(p + k * 8 + j * lanes);
  return r;
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
  return load_wide(all);
#endif
}

template <class T>
INLINE void accumulate(Wide<T>& sum, Wide<T> x) {
  for (int k = 0; k < Wide<T>::parts; ++k) sum.p[k] = sum.p[k] + x.p[k];
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
    double lanes[16];
    sum.store(lanes);
    value = tail = 0;
    for (double lane : lanes) two_sum(value, tail, lane);
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

template <class T>
INLINE Pack<T> tree(const Pack<T> (&t)[8]) {
  return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
}

// ---- the end of a run whose length is not a multiple of the pack ---------------------------------------------------

// For elementwise work the last pack overlaps the one before it and computes some values twice; for sums, lanes that
// were counted already must hold a value that adds nothing.
template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int32_t uncounted[32] = {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                            -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct Lanes<double> {
  static constexpr int64_t uncounted[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};

template <class T>
INLINE Pack<T> load_uncounted(const T* run, int64_t length, T fill) {
  using P = Pack<T>;
  const int64_t rest = length % P::size;
  if (length < P::size) return P::load_first(run, length, fill);
  const P last = P::load(run + length - P::size), other = P::of(fill);
  P r;
  for (int k = 0; k < P::parts; ++k) {
    const auto mask = *reinterpret_cast<const typename Lanes<T>::Mask*>(Lanes<T>::uncounted + rest + k * P::lanes);
    r.v[k] = mask ? last.v[k] : other.v[k];
  }
  return r;
}
