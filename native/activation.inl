// activation: value and derivative, one pair a kind, over packs that lie in memory. In float by formulas of basic
// operations alone, so that every instruction set gives the same bits; in double the smooth ones value by value, by libm.
// The polynomials are least squares fits, reweighted until the largest error was least; each says its largest error.

template <class T> struct IntsOf {
  typedef uint32_t Int;
  typedef Int Vec __attribute__((vector_size(kVectorBytes)));
};
template <> struct IntsOf<double> {
  typedef uint64_t Int;
  typedef Int Vec __attribute__((vector_size(kVectorBytes)));
};

template <class T>
INLINE Pack<T> of(T value) {
  return Pack<T>::of(value);
}
// Clamps that let NaN through.
template <class T>
INLINE Pack<T> at_least(Pack<T> x, T bound) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) x.v[0] = (typename Pack<T>::Vec)_mm512_max_ps(_mm512_set1_ps(bound), (__m512)x.v[0]);
  else x.v[0] = (typename Pack<T>::Vec)_mm512_max_pd(_mm512_set1_pd(bound), (__m512d)x.v[0]);
  return x;
#else
  return select(x < of(bound), of(bound), x);
#endif
}
template <class T>
INLINE Pack<T> at_most(Pack<T> x, T bound) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) x.v[0] = (typename Pack<T>::Vec)_mm512_min_ps(_mm512_set1_ps(bound), (__m512)x.v[0]);
  else x.v[0] = (typename Pack<T>::Vec)_mm512_min_pd(_mm512_set1_pd(bound), (__m512d)x.v[0]);
  return x;
#else
  return select(of(bound) < x, of(bound), x);
#endif
}

// |x| and -|x|, by the bit of the sign.
template <class T>
INLINE Pack<T> minus_magnitude(Pack<T> x) {
  using V = typename IntsOf<T>::Vec;
  for (int k = 0; k < Pack<T>::parts; ++k)
    x.v[k] = (typename Pack<T>::Vec)((V)x.v[k] | (V{} + (typename IntsOf<T>::Int(1) << (8 * sizeof(T) - 1))));
  return x;
}
template <class T>
INLINE Pack<T> magnitude(Pack<T> x) {
  using V = typename IntsOf<T>::Vec;
  for (int k = 0; k < Pack<T>::parts; ++k)
    x.v[k] = (typename Pack<T>::Vec)((V)x.v[k] & ~(V{} + (typename IntsOf<T>::Int(1) << (8 * sizeof(T) - 1))));
  return x;
}
template <int n, class T>
INLINE Pack<T> polynomial(const T (&c)[n], Pack<T> x) {
  Pack<T> r = of(c[n - 1]);
  for (int k = n - 2; k >= 0; --k) r = r * x + of(c[k]);
  return r;
}

// ---- e^x in float --------------------------------------------------------------------------------------------------

// e^x = 2^n (1 + p), |p| < 0.42, n a whole number.
struct Exp {
  Pack<float> p, n;
};

INLINE Exp exp_parts(Pack<float> x) {
  constexpr float magic = 12582912;  // 1.5 * 2^23: what is added to it is rounded
  static constexpr float q[] = {0.5f, 0.166666672f, 0.041666463f, 0.00833328534f, 0.00139339024f, 0.000199079397f};  // 4e-9
  x = at_most(at_least(x, -104.f), 89.f);                                      // 0 and infinity; NaN stays
  const Pack<float> n = (x * of(1.44269504f) + of(magic)) - of(magic);
  const Pack<float> r = (x - n * of(0.693359375f)) - n * of(-2.12194440e-4f);  // log 2 in two parts, the first exact
  return {r + (r * r) * polynomial(q, r), n};
}

// x * 2^n, rounded once. As two factors, neither of which overflows.
INLINE Pack<float> times_two_to(Pack<float> x, Pack<float> n) {
#if defined(__AVX512F__)
  x.v[0] = (Floats)_mm512_scalef_ps((__m512)x.v[0], (__m512)n.v[0]);
#else
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  for (int k = 0; k < Pack<float>::parts; ++k) {
    const Floats shifted = n.v[k] + 12582912.f;
    const Ints whole = (Ints)shifted - (Ints)(Floats{} + 12582912.f), half = whole >> 1;
    x.v[k] = x.v[k] * (Floats)((half + 127) << 23) * (Floats)((whole - half + 127) << 23);
  }
#endif
  return x;
}
INLINE Pack<float> exp(Pack<float> x) {
  const Exp e = exp_parts(x);
  return times_two_to(of(1.f) + e.p, e.n);
}
INLINE Pack<float> expm1(Pack<float> x) {
  const Exp e = exp_parts(x);
  return times_two_to(e.p, e.n) + (times_two_to(of(1.f), e.n) - of(1.f));
}

template <class F>
INLINE Pack<double> each(Pack<double> x, F f) {
  double all[8];
  x.store(all);
  for (double& value : all) value = f(value);
  return Pack<double>::load(all);
}
INLINE Pack<double> exp(Pack<double> x) { return each(x, [](double v) { return __builtin_exp(v); }); }
INLINE Pack<double> expm1(Pack<double> x) { return each(x, [](double v) { return __builtin_expm1(v); }); }

// ---- what activations are made of ------------------------------------------------------------------------------------

// s = 1 / (1 + e^-x) and 1 - s, neither by a difference.
template <class T>
struct Sigmoid {
  Pack<T> s, rest;
};
template <class T>
INLINE Sigmoid<T> sigmoid(Pack<T> x) {
  const Pack<T> e = exp(minus_magnitude(x)), large = of(T(1)) / (of(T(1)) + e), small = e * large;
  const Mask<T> negative = x < Pack<T>::zero();
  return {select(negative, small, large), select(negative, large, small)};
}

INLINE Pack<float> tanh(Pack<float> x) {
  static constexpr float c[] = {-0.333333343f, 0.133333012f, -0.0539587848f, 0.0217647534f, -0.00832960289f, 0.0022759058f};  // 2e-8
  const Pack<float> size = magnitude(x), square = x * x, e = exp(of(-2.f) * size);
  const Pack<float> far = of(1.f) - (of(2.f) * e) / (of(1.f) + e);
  return select(size <= of(0.63f), x + x * square * polynomial(c, square), select(x < Pack<float>::zero(), Pack<float>::zero() - far, far));
}
INLINE Pack<double> tanh(Pack<double> x) { return each(x, [](double v) { return __builtin_tanh(v); }); }

// The normal distribution beyond x: P(X > x), and its density.
template <class T>
struct Normal {
  Pack<T> above, below, density;
};
template <class T>
INLINE Normal<T> both_sides(Pack<T> x, Pack<T> tail, Pack<T> bell) {
  const Mask<T> negative = x < Pack<T>::zero();
  const Pack<T> rest = of(T(1)) - tail;
  return {select(negative, rest, tail), select(negative, tail, rest), bell * of(T(0.39894228040143267794))};
}
// P(X > a) = e^(-a^2/2) R(a), R by a polynomial in (a - 4) / (a + 4). What rounding a^2 loses is made good.
INLINE Normal<float> normal(Pack<float> x) {
  using Ints = IntsOf<float>::Vec;
  static constexpr float R[] = {0.094410643f, -0.170397744f, 0.124379203f, -0.071706742f, 0.0308654979f, -0.00849791802f,
                                0.000502552721f, 0.000657763914f, -0.000167827355f, -6.52862145e-05f};  // 3e-8 of R
  const Pack<float> a = at_most(magnitude(x), 15.f);
  Pack<float> high = a;
  for (int k = 0; k < Pack<float>::parts; ++k) high.v[k] = (Floats)((Ints)high.v[k] & 0xfffff000u);
  const Pack<float> low = a - high, square = a * a;
  const Pack<float> lost = ((high * high - square) + of(2.f) * (high * low)) + low * low;
  const Pack<float> rounded = exp(of(-0.5f) * square), bell = rounded - rounded * (of(0.5f) * lost);
  return both_sides(x, bell * polynomial(R, (a - of(4.f)) / (a + of(4.f))), bell);
}
INLINE Normal<double> normal(Pack<double> x) {
  const Pack<double> a = magnitude(x);
  const Pack<double> tail = each(a, [](double v) { return 0.5 * __builtin_erfc(v * 0.70710678118654752440); });
  return both_sides(x, tail, exp(of(-0.5) * (a * a)));
}

// gelu by tanh: x s(2w), w = sqrt(2/pi) (x + 0.044715 x^3). Beyond 30 the sigmoid is 0 or 1 whatever w is.
template <class T>
INLINE Pack<T> within_30(Pack<T> x) {
  return at_most(at_least(x, T(-30)), T(30));
}
template <class T>
INLINE Sigmoid<T> tanh_gate(Pack<T> x) {
  const Pack<T> c = within_30(x);
  return sigmoid(of(T(1.5957691216057307117)) * (c + of(T(0.044715)) * (c * c * c)));
}

// ---- the kinds -----------------------------------------------------------------------------------------------------

template <class T>
struct Bounds {
  T a, b;
};

template <Kind kind, class T>
INLINE Pack<T> value_of(Pack<T> z, Bounds<T> with) {
  const Pack<T> zero = Pack<T>::zero(), a = of(with.a);
  if constexpr (kind == Kind::relu) return select(z <= zero, zero, z);
  if constexpr (kind == Kind::leaky_relu) return select(zero < z, z, z * a);
  if constexpr (kind == Kind::hardtanh) return at_most(at_least(z, with.a), with.b);
  if constexpr (kind == Kind::hardswish) {
    const Pack<T> up = z + of(T(3)), gate = at_most(at_least(up, T(0)), T(6));
    return (z * gate) / of(T(6));
  }
  if constexpr (kind == Kind::silu) return z * sigmoid(z).s;
  if constexpr (kind == Kind::gelu) return z * normal(z).below;
  if constexpr (kind == Kind::gelu_tanh) return z * tanh_gate(z).s;
  if constexpr (kind == Kind::sigmoid) return sigmoid(z).s;
  if constexpr (kind == Kind::tanh) return tanh(z);
  if constexpr (kind == Kind::elu) return select(zero < z, z, a * expm1(at_most(z, T(0))));
  return z;
}

// activation'(z), where that is a number and not a choice.
template <Kind kind, class T>
INLINE Pack<T> slope_of(Pack<T> z, Bounds<T> with) {
  const Pack<T> zero = Pack<T>::zero(), one = of(T(1));
  if constexpr (kind == Kind::silu) {
    const Sigmoid<T> g = sigmoid(z);
    return g.s * (one + z * g.rest);
  }
  if constexpr (kind == Kind::gelu) {
    const Normal<T> n = normal(z);
    return n.below + z * n.density;
  }
  if constexpr (kind == Kind::gelu_tanh) {
    const Sigmoid<T> g = tanh_gate(z);
    const Pack<T> c = within_30(z), steep = of(T(1.5957691216057307117)) * (one + of(T(0.134145)) * (c * c));
    return g.s + c * (g.s * g.rest) * steep;
  }
  if constexpr (kind == Kind::sigmoid) {
    const Sigmoid<T> g = sigmoid(z);
    return g.s * g.rest;
  }
  if constexpr (kind == Kind::tanh) {
    const Sigmoid<T> g = sigmoid(z + z);
    return of(T(4)) * (g.s * g.rest);
  }
  if constexpr (kind == Kind::elu) return select(zero < z, one, of(with.a) * exp(at_most(z, T(0))));
  return one;
}

// What is beyond a corner is chosen, not multiplied by 0: dy may be infinite.
template <Kind kind, class T>
INLINE Pack<T> gradient_of(Pack<T> z, Pack<T> dy, Bounds<T> with) {
  const Pack<T> zero = Pack<T>::zero();
  if constexpr (kind == Kind::relu) return select(z <= zero, zero, dy);
  else if constexpr (kind == Kind::leaky_relu) return select(zero < z, dy, dy * of(with.a));
  else if constexpr (kind == Kind::hardtanh) return select(neither(z <= of(with.a), of(with.b) <= z), dy, zero);
  else if constexpr (kind == Kind::hardswish)
    return select(z <= of(T(-3)), zero, select(of(T(3)) <= z, dy, dy * (z / of(T(3)) + of(T(0.5)))));
  else return dy * slope_of<kind>(z, with);
}

template <Kind kind, class T>
void values(T* z, int64_t packs, T a, T b) {
  constexpr int size = Pack<T>::size;
  for (int64_t k = 0; k < packs; ++k) value_of<kind>(Pack<T>::load(z + k * size), Bounds<T>{a, b}).store(z + k * size);
}
template <Kind kind, class T>
void gradients(const T* z, T* dy, int64_t packs, T a, T b) {
  constexpr int size = Pack<T>::size;
  for (int64_t k = 0; k < packs; ++k)
    gradient_of<kind>(Pack<T>::load(z + k * size), Pack<T>::load(dy + k * size), Bounds<T>{a, b}).store(dy + k * size);
}

#define NORMWRIGHT_EACH_KIND(f)                                                                                  \
  {f<Kind::identity, T>, f<Kind::relu, T>, f<Kind::leaky_relu, T>, f<Kind::hardtanh, T>, f<Kind::hardswish, T>,  \
   f<Kind::silu, T>, f<Kind::gelu, T>, f<Kind::gelu_tanh, T>, f<Kind::sigmoid, T>, f<Kind::tanh, T>, f<Kind::elu, T>}
template <class T>
constexpr Activations<T> activations{NORMWRIGHT_EACH_KIND(values), NORMWRIGHT_EACH_KIND(gradients)};
