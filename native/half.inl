// Data as packs of what is computed in: float and double as they are, half types converted. Conversions round to nearest,
// ties to even, and are the same bits with and without the processor's own instructions.

typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t Loose16 __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

// ---- one vector ----------------------------------------------------------------------------------------------------

INLINE Bits16 to_half(Floats v, bf16) {
  const Bits32 u = (Bits32)v;
  const Bits32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return __builtin_convertvector((v == v) ? rounded : (u >> 16) | 0x40, Bits16);  // a NaN stays one
}

#if defined(__AVX512F__)
// Conversions in assembly: GCC 12 breaks down over the intrinsics for them here.

// Each bf16 becomes the upper half of a float in one instruction. To widen and to shift takes twice as long.
INLINE Floats from_half(Bits16 h, bf16) {
  alignas(64) static constexpr uint16_t upper[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                     0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
  constexpr __mmask32 odd = 0xaaaaaaaau;
  Floats v;
  asm("vpermw %g1, %2, %0%{%3%}%{z%}" : "=v"(v) : "v"(h), "v"(_mm512_load_si512(upper)), "Yk"(odd));
  return v;
}
INLINE Floats from_half(Bits16 h, f16) {
  Floats v;
  asm("vcvtph2ps %1, %0" : "=v"(v) : "v"(h));
  return v;
}
INLINE Bits16 to_half(Floats v, f16) {
  Bits16 h;
  asm("vcvtps2ph $8, %1, %0" : "=v"(h) : "v"(v));
  return h;
}
#else
INLINE Floats from_half(Bits16 h, bf16) { return (Floats)(__builtin_convertvector(h, Bits32) << 16); }
#endif

#if defined(__AVX512F__)
#elif defined(__F16C__)
INLINE Floats from_half(Bits16 h, f16) { return (Floats)_mm256_cvtph_ps((__m128i)h); }
INLINE Bits16 to_half(Floats v, f16) {
  return (Bits16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
// By moving bits, without a subnormal float on the way: a process may flush those.
INLINE Floats from_half(Bits16 h, f16) {
  const Bits32 u = __builtin_convertvector(h, Bits32);
  const Bits32 magnitude = (u & 0x7fff) << 13, sign = (u & 0x8000) << 16;
  const Bits32 smallest = Bits32{} + (113u << 23);  // 2^-14
  const Bits32 subnormal = (Bits32)((Floats)(magnitude + smallest) - (Floats)smallest);
  const Bits32 quiet = magnitude > 0x0f800000u ? Bits32{} + 0x00400000u : Bits32{};
  const Bits32 normal = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u | quiet : magnitude + (112u << 23);
  return (Floats)(sign | (magnitude < 0x00800000u ? subnormal : normal));
}
INLINE Bits16 to_half(Floats v, f16) {
  const Bits32 u = (Bits32)v, magnitude = u & 0x7fffffffu, sign = (u >> 16) & 0x8000;
  const Bits32 magic = Bits32{} + (126u << 23);  // 0.5, whose last bit is the last of a subnormal half
  const Bits32 subnormal = (Bits32)((Floats)magnitude + (Floats)magic) - magic;
  const Bits32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const Bits32 nan = 0x7e00u | ((magnitude >> 13) & 0x3ff);
  const Bits32 large = magnitude > 0x7f800000u ? nan : Bits32{} + 0x7c00u;
  const Bits32 small = magnitude < (113u << 23) ? subnormal : normal;
  return __builtin_convertvector(sign | (magnitude >= 0x47800000u ? large : small), Bits16);
}
#endif

template <class D>
constexpr bool kIsHalf = sizeof(D) == 2;

// ---- packs ---------------------------------------------------------------------------------------------------------

INLINE Pack<float> load(const float* p) { return Pack<float>::load(p); }
INLINE Pack<double> load(const double* p) { return Pack<double>::load(p); }
template <class D>
INLINE Pack<float> load(const D* p) {
  Pack<float> r;
  for (int k = 0; k < Pack<float>::parts; ++k)
    r.v[k] = from_half(*reinterpret_cast<const Loose16*>(p + k * Pack<float>::lanes), D{});
  return r;
}

INLINE void store(Pack<float> v, float* p) { v.store(p); }
INLINE void store(Pack<double> v, double* p) { v.store(p); }
template <class D>
INLINE void store(Pack<float> v, D* p) {
  for (int k = 0; k < Pack<float>::parts; ++k)
    *reinterpret_cast<Loose16*>(p + k * Pack<float>::lanes) = to_half(v.v[k], D{});
}

// Streaming wants addresses that are multiples of what one pack of D takes.
template <class D>
constexpr int64_t kAligned = sizeof(D) * Pack<Computed<D>>::size;

INLINE void stream(Pack<float> v, float* p) { v.stream(p); }
INLINE void stream(Pack<double> v, double* p) { v.stream(p); }
template <class D>
INLINE void stream(Pack<float> v, D* p) {
#if defined(__AVX512F__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)to_half(v.v[0], D{}));
#elif defined(__SSE2__)
  D all[16];
  store(v, all);
  for (int k = 0; k < 2; ++k)
    _mm_stream_si128(reinterpret_cast<__m128i*>(p) + k, _mm_loadu_si128(reinterpret_cast<const __m128i*>(all) + k));
#else
  store(v, p);
#endif
}

template <bool Stream, class T, class D>
INLINE void put(Pack<T> v, D* p) {
  if constexpr (Stream) stream(v, p);
  else store(v, p);
}

// Several packs, one behind the other.
template <bool Stream, int n, class T, class D>
INLINE void put_all(const Pack<T> (&v)[n], D* p) {
  for (int k = 0; k < n; ++k) put<Stream>(v[k], p + k * Pack<T>::size);
}
#if defined(__AVX512F__)
// Two packs of rounded floats are one of bf16: the upper half of each.
INLINE __m512i two_bf16(Pack<float> a, Pack<float> b) {
#if defined(__AVX512BF16__)
  // The processor's own rounding is a third of the work, and the same bits but for subnormal floats, which it takes for 0.
  constexpr int subnormal = 0x20;
  if (!(_mm512_fpclass_ps_mask((__m512)a.v[0], subnormal) | _mm512_fpclass_ps_mask((__m512)b.v[0], subnormal))) [[likely]] {
    __m512i two;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(two) : "v"(a.v[0]), "v"(b.v[0]));
    return two;
  }
#endif
  const auto rounded = [](Pack<float> v) {
    const __m512i u = (__m512i)v.v[0], odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask((__m512)v.v[0], (__m512)v.v[0], _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000));
  };
  alignas(64) static constexpr uint16_t upper[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                     33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(rounded(a), _mm512_load_si512(upper), rounded(b));
}
template <bool Stream, int n>
INLINE void put_all(const Pack<float> (&v)[n], bf16* p) {
  if constexpr (n % 2 == 0) {
    const bool past = Stream && reinterpret_cast<uintptr_t>(p) % 64 == 0;
    for (int k = 0; k < n; k += 2) {
      const __m512i two = two_bf16(v[k], v[k + 1]);
      if (past) _mm512_stream_si512(reinterpret_cast<__m512i*>(p + k * 16), two);
      else _mm512_storeu_si512(p + k * 16, two);
    }
  } else {
    for (int k = 0; k < n; ++k) put<Stream>(v[k], p + k * 16);
  }
}
#endif

// The first n < size values; the other lanes are 0.
template <class D>
INLINE Pack<Computed<D>> load_first(const D* p, int64_t n) {
  D all[Pack<Computed<D>>::size] = {};
  for (int k = 0; k < n; ++k) all[k] = p[k];
  return load(all);
}
template <class T, class D>
INLINE void store_first(Pack<T> v, D* p, int64_t n) {
  D all[Pack<T>::size];
  store(v, all);
  for (int k = 0; k < n; ++k) p[k] = all[k];
}

INLINE Wide<double> load_wide(const double* p) { return {{load(p)}}; }
INLINE Wide<float> load_wide(const float* p) {
  constexpr int lanes = Pack<double>::lanes;
  Wide<float> r;
  for (int k = 0; k < 2; ++k)
    for (int j = 0; j < Pack<double>::parts; ++j) r.p[k].v[j] = to_doubles(p + k * 8 + j * lanes);
  return r;
}
template <class D>
INLINE Wide<float> load_wide(const D* p) {
  return widen(load(p));
}

INLINE double first_of(const double* p) { return *p; }
INLINE double first_of(const float* p) { return *p; }
template <class D>
INLINE double first_of(const D* p) {
  Bits16 all{};
  all[0] = p->bits;
  return double(from_half(all, D{})[0]);
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

// `other` in the lanes of a last pack that were counted already.
template <class T>
INLINE Pack<T> uncounted(Pack<T> last, int64_t length, T fill) {
  using P = Pack<T>;
  const P other = P::of(fill);
  P r;
  for (int k = 0; k < P::parts; ++k) {
    const auto mask = *reinterpret_cast<const typename Lanes<T>::Mask*>(Lanes<T>::uncounted + length % P::size + k * P::lanes);
    r.v[k] = mask ? last.v[k] : other.v[k];
  }
  return r;
}
template <class D>
INLINE Pack<Computed<D>> load_last(const D* run, int64_t length) {
  return load(run + length - Pack<Computed<D>>::size);
}
template <class D>
INLINE Pack<Computed<D>> load_uncounted(const D* run, int64_t length, Computed<D> fill) {
  using P = Pack<Computed<D>>;
  if (length < P::size) {
    Pack<Computed<D>> r = load_first(run, length);
    Computed<D> all[P::size];
    store(r, all);
    for (int64_t k = length; k < P::size; ++k) all[k] = fill;
    return load(all);
  }
  return uncounted(load_last(run, length), length, fill);
}
// The first n lanes, and 0.
template <class T>
INLINE Pack<T> uncounted_first(Pack<T> x, int64_t n) {
  T all[Pack<T>::size];
  x.store(all);
  for (int64_t k = n; k < Pack<T>::size; ++k) all[k] = 0;
  return Pack<T>::load(all);
}
