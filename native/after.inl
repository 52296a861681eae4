// What comes after normalization, as the kernels carry it along: for n packs of z at a time.

// How dz follows from dy: it is dy; by z and relu; by z and any activation; by one bit of each value, which forward left
// or z tells.
enum class How { plain, relu, any, told };

template <class D>
INLINE How how_of(const After<D>& after) {
  if (after.activation.kind == Kind::identity) return How::plain;
  return after.activation.kind == Kind::relu ? How::relu : How::any;
}

// Calls work<how, residual>() with what is known of a call while it compiles.
template <class D, class Work>
INLINE void forward_kinds(const After<D>& after, Work work) {
  const auto how = [&]<How known>() {
    if (after.residual) work.template operator()<known, true>();
    else work.template operator()<known, false>();
  };
  switch (how_of(after)) {
    case How::plain: return how.template operator()<How::plain>();
    case How::relu: return how.template operator()<How::relu>();
    default: return how.template operator()<How::any>();
  }
}
template <class D, class Work>
INLINE void backward_kinds(const After<D>& after, Work work) {
  if (after.bits || (after.activation.is_told_by_a_bit() && after.activation.kind != Kind::relu && !after.residual))
    return work.template operator()<How::told, false>();
  switch (how_of(after)) {
    case How::plain: return work.template operator()<How::plain, false>();
    case How::relu:
      if (!after.residual) return work.template operator()<How::relu, false>();
      [[fallthrough]];
    default:
      if (after.residual) return work.template operator()<How::any, true>();
      return work.template operator()<How::any, false>();
  }
}

// An activation as a kernel calls it.
template <class T>
struct Called {
  void (*value)(T*, int64_t, T, T);
  void (*gradient)(const T*, T*, int64_t, T, T);
  T a, b;
  Pack<T> low, high;  // within them a bit is set
  bool leaky;
  INLINE explicit Called(const Activation& activation)
      : value(activations<T>.value[int(activation.kind)]),
        gradient(activations<T>.gradient[int(activation.kind)]),
        a(T(activation.a)),
        b(T(activation.b)),
        low(Pack<T>::of(activation.kind == Kind::hardtanh ? T(activation.a) : T(0))),
        high(Pack<T>::of(activation.kind == Kind::hardtanh ? T(activation.b) : T(__builtin_nan("")))),
        leaky(activation.kind == Kind::leaky_relu) {}
  // A NaN is as torch has it: closed for leaky_relu, open for the others.
  INLINE Word<T> word(Pack<T> z) const { return leaky ? word_of(low < z) : word_of(neither(z <= low, high <= z)); }
};

// z becomes activation(z). `bits` may be null.
template <How how, int n, class T>
INLINE void activate(Pack<T> (&z)[n], Word<T>* bits, const Called<T>& called) {
  if constexpr (how != How::plain)
    if (bits)
      for (int k = 0; k < n; ++k) bits[k] = called.word(z[k]);
  if constexpr (how == How::relu)
    for (int k = 0; k < n; ++k) z[k] = value_of<Kind::relu>(z[k], Bounds<T>{});
  if constexpr (how == How::any) called.value(reinterpret_cast<T*>(z), n, called.a, called.b);
}

// dy becomes dz. z_of(k) is the pre-activation of pack k, recomputed by the expression of apply.
template <How how, int n, class T, class Z>
INLINE void through(Pack<T> (&dy)[n], const Word<T>* bits, const Called<T>& called, Z z_of) {
  if constexpr (how == How::relu)
    for (int k = 0; k < n; ++k) dy[k] = gradient_of<Kind::relu>(z_of(k), dy[k], Bounds<T>{});
  if constexpr (how == How::any) {
    Pack<T> z[n];
    for (int k = 0; k < n; ++k) z[k] = z_of(k);
    called.gradient(reinterpret_cast<const T*>(z), reinterpret_cast<T*>(dy), n, called.a, called.b);
  }
  if constexpr (how == How::told) {
    Word<T> words[n];
    for (int k = 0; k < n; ++k) words[k] = bits ? bits[k] : called.word(z_of(k));
    for (int k = 0; k < n; ++k)
      dy[k] = select(mask_of<T>(words[k]), dy[k], called.leaky ? dy[k] * Pack<T>::of(called.a) : Pack<T>::zero());
  }
}
